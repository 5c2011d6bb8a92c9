"""Which requests a canary answers, and what happens to those that it cannot."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from models.manifest import Manifest
from server.engine.classes import Extras
from server.errors import Code, ServiceError
from server.repository import Catalogue, scan
from server.serving.canaries import Canaries
from server.serving.plan import Ask, Plan
from server.settings import Settings
from tests import tiny

SETTINGS = Settings(timeout_ms=4000)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """`new` answers half of the requests for `main`, which has features."""
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository, "main", extras=True)
    tiny.write(repository, "new", crop=16)
    own = {"canary_of": "main", "share": 0.5, "priority": "low", "timeout_ms": 1}
    (repository / "new" / "serving.json").write_text(json.dumps(own))
    return scan(repository, default_model="main")


class World:
    """Engines and metrics."""

    def __init__(self) -> None:
        self.loaded = True
        self.counted: list[str] = []
        self.canaries = self  # of metrics
        self.under_test = Canaries(SETTINGS, cast("Any", self), cast("Any", self))

    def has(self, _: str) -> bool:
        return self.loaded

    def labels(self, *labels: str) -> "World":
        assert labels[:2] == ("new", "1")
        self.counted.append(labels[-1])
        return self

    def inc(self) -> None:
        pass

    def names(self, catalogue: Catalogue, count: int = 4, image: Any = b"", **ask: Any) -> list[str]:
        """The models that answer `count` requests."""
        plan = Plan.of(Ask(**ask), catalogue, SETTINGS)
        return [self.under_test.chosen(plan, image).entry.name for _ in range(count)]


def test_it_answers_its_share_by_the_terms_of_the_model_that_was_asked_for(catalogue: Catalogue) -> None:
    world = World()
    assert world.names(catalogue) == ["main", "new", "main", "new"]
    assert world.names(catalogue, model="main", crops=10) == ["main", "new", "main", "new"]
    assert world.counted == ["asked"] * 4
    plan = Plan.of(Ask(), catalogue, SETTINGS)
    world.under_test.chosen(plan, b"")
    found = world.under_test.chosen(plan, b"")
    assert (found.entry.name, found.instead, found.ask.model) == ("new", plan, "new")
    assert (found.priority, found.timeout_s) == (plan.priority, 4.0)


def test_who_names_a_version_or_the_canary_gets_that(catalogue: Catalogue) -> None:
    world = World()
    assert set(world.names(catalogue, model="main", version=1)) == {"main"}
    assert set(world.names(catalogue, model="new")) == {"new"}
    assert world.counted == []


@pytest.mark.parametrize(
    ("loaded", "image", "ask"),
    [
        (False, b"", {}),
        (True, b"", {"include": Extras.FEATURES}),  # it has no features
        (True, np.zeros((32, 32, 3), np.uint8), {}),  # of the main model's input size
    ],
)
def test_what_it_cannot_answer_the_main_model_does(
    catalogue: Catalogue, loaded: bool, image: Any, ask: dict[str, Any]
) -> None:
    world = World()
    world.loaded = loaded
    assert world.names(catalogue, image=image, **ask) == ["main"] * 4
    assert world.counted == ["passed_back"] * 2


def test_it_has_as_many_classes_or_is_idle(catalogue: Catalogue, tmp_path: Path) -> None:
    tiny.write(tmp_path, "main")
    found = tiny.write(tmp_path, "new")
    fewer = Manifest(**dict(found) | {"labels": found.labels[:200], "num_classes": 200})
    (tmp_path / "new/1/manifest.json").write_text(fewer.model_dump_json())
    (tmp_path / "new/serving.json").write_text('{"canary_of": "main", "share": 1}')
    other = scan(tmp_path, default_model="main")
    world = World()
    assert world.names(other) == ["main"] * 4
    canary, plan = other.candidates.canaries["main"], Plan.of(Ask(), other, SETTINGS)
    assert world.under_test.why_idle(canary, plan) == "it has 200 classes, but main has 256"
    assert world.under_test.why_idle(catalogue.candidates.canaries["main"], plan) is None


def test_its_own_failures_are_passed_back_and_those_of_the_image_are_not(catalogue: Catalogue) -> None:
    world = World()
    plan = Plan.of(Ask("new"), catalogue, SETTINGS)
    for code in (Code.NOT_AN_IMAGE, Code.DEADLINE_EXCEEDED):
        assert not world.under_test.passes_back(plan, ServiceError(code, ""))
    assert world.under_test.passes_back(plan, ServiceError(Code.ENGINE_UNAVAILABLE, ""))
    assert "new" in world.names(catalogue)


def test_who_failed_is_left_alone_for_a_while(catalogue: Catalogue) -> None:
    world = World()
    assert world.under_test.passes_back(
        Plan.of(Ask("new"), catalogue, SETTINGS), ServiceError(Code.INFERENCE_FAILED, "no")
    )
    assert set(world.names(catalogue)) == {"main"}
    canary, plan = catalogue.candidates.canaries["main"], Plan.of(Ask(), catalogue, SETTINGS)
    assert "failed in this HTTP worker" in str(world.under_test.why_idle(canary, plan))
