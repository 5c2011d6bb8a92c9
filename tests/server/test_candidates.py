"""Which models the repository makes candidates for which others."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.repository import Catalogue, ModelKey, scan
from tests import tiny


def write(repository: Path, name: str, version: int = 1, **settings: Any) -> None:
    tiny.write(repository, name, version)
    if settings:
        (repository / name / "serving.json").write_text(json.dumps(settings))


def refusal(catalogue: Catalogue, name: str) -> str:
    return catalogue.refused[ModelKey(name, 1)].reason


def test_the_newest_version_is_the_candidate_for_the_newest_of_another_model(tmp_path: Path) -> None:
    write(tmp_path, "main", 1)
    write(tmp_path, "main", 2)
    write(tmp_path, "new", 1, shadow_of="main", share=0.25)
    write(tmp_path, "new", 3)
    write(tmp_path, "newer", canary_of="main", share=0.5)
    found = scan(tmp_path).candidates
    (shadow,) = found.shadows["main", 2]
    assert (shadow.model.key, shadow.role, shadow.share) == (ModelKey("new", 3), "shadow", 0.25)
    assert [*found.shadows] == [("main", 2)]
    assert (found.canaries["main"].name, found.canaries["main"].share) == ("newer", 0.5)
    assert set(found.by_key) == {ModelKey("new", 3), ModelKey("newer", 1)}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"shadow_of": "nobody", "share": 0.1}, "there is no model 'nobody' in the repository"),
        ({"shadow_of": "bad", "share": 0.1}, "it names itself"),
        ({"canary_of": "other", "share": 0.1}, "'other' is a candidate itself, for 'main'"),
        ({"canary_of": "main", "share": 0.1, "shadow_of": "main"}, "exclude each other"),
        ({"canary_of": "main", "share": 1.1}, "share: Input should be less than or equal to 1"),
        ({"canary_of": "main", "share": -1}, "share: Input should be greater than or equal to 0"),
        ({"canary_of": "main"}, "share goes with"),
        ({"share": 0.5}, "share goes with"),
        ({"canary_of": "taken", "share": 0.1}, "'taken' has a canary already, 'a_canary'"),
    ],
)
def test_what_can_be_no_candidate_is_refused_with_its_reason_and_nothing_else_is(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    write(tmp_path, "main")
    write(tmp_path, "taken")
    write(tmp_path, "other", shadow_of="main", share=0.1)
    write(tmp_path, "a_canary", canary_of="taken", share=0.1)
    write(tmp_path, "bad", **settings)
    catalogue = scan(tmp_path)
    assert reason in refusal(catalogue, "bad")
    assert "bad/serving.json: " in refusal(catalogue, "bad")
    assert len(catalogue.refused) == 1
    assert set(catalogue.versions) == {"main", "taken", "other", "a_canary"}


def test_two_that_name_each_other_are_both_refused(tmp_path: Path) -> None:
    write(tmp_path, "main")
    write(tmp_path, "a", shadow_of="b", share=0.1)
    write(tmp_path, "b", canary_of="a", share=0.1)
    assert set(scan(tmp_path).versions) == {"main"}


def test_a_model_that_is_there_and_not_served_leaves_its_candidate_idle(tmp_path: Path) -> None:
    write(tmp_path, "main")
    write(tmp_path, "broken")
    (tmp_path / "broken/1/manifest.json").write_text("{")
    write(tmp_path, "new", shadow_of="broken", share=0.1)
    found = scan(tmp_path)
    assert "new" in found.versions
    assert (found.candidates.shadows, [*found.candidates.by_key]) == ({}, [ModelKey("new", 1)])
    assert scan(tmp_path, names=("new",)).candidates.by_key  # even if it is not served
    catalogue = scan(tmp_path, names=("main", "new")).without({"main"})
    assert catalogue.candidates.by_key


def test_a_candidate_is_not_the_default_while_there_is_another(tmp_path: Path) -> None:
    write(tmp_path, "main")
    write(tmp_path, "resnet50", shadow_of="main", share=0.1)
    assert scan(tmp_path).default_model == "main"
    assert scan(tmp_path, names=("resnet50",)).default_model == "resnet50"


def test_no_engine_loads_a_model_again_for_another_share(tmp_path: Path) -> None:
    write(tmp_path, "main")
    write(tmp_path, "new", shadow_of="main", share=0.1)
    before = scan(tmp_path)
    (tmp_path / "new/serving.json").write_text(json.dumps({"canary_of": "main", "share": 0.5}))
    after = scan(tmp_path)
    key = ModelKey("new", 1)
    assert after.models[key].id == before.models[key].id
    assert after != before
    assert (before.candidates.canaries, after.candidates.shadows) == ({}, {})
