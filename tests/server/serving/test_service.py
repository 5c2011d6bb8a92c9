"""When a server is ready, depending on its engines and their models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from server import repository
from server.placement import Place
from server.serving.service import Service
from server.settings import Settings
from tests import tiny

PLACES = (Place("engine-0", cpus=(0,)), Place("engine-1", cpus=(1,)))


class Engines:
    """A classifier that reports which engines are away, and which models the others have."""

    def __init__(self, away: Sequence[int], models: set[str]) -> None:
        self.away = away
        self.connected = len(away) < len(PLACES)
        self._models = models

    def has(self, model: str) -> bool:
        return model in self._models


@pytest.mark.parametrize(
    ("away", "models", "reason"),
    [
        ([], "ab", None),
        ([1], "ab", None),
        ([1], "a", "no inference engine that has b version 1 is there; not there: engine-1 (cpus 1)"),
        ([0, 1], "", "the inference engine is starting or down"),
    ],
)
def test_it_is_ready_as_long_as_each_model_that_must_be_there_is_with_some_engine(
    tmp_path: Path, away: list[int], models: str, reason: str | None
) -> None:
    for name in "abc":
        tiny.write(tmp_path, name)
    catalogue = repository.scan(tmp_path)
    ids = {model.id for key, model in catalogue.models.items() if key.name in models}
    settings = Settings(models=("a", "b"))
    nothing: Any = None
    classifier = cast("Any", Engines(away, ids))
    service = Service(settings, catalogue, classifier, nothing, nothing, nothing, places=PLACES)
    assert service.why_not_ready() == reason
    assert service.away == ("not there: engine-1 (cpus 1)" if away == [1] else service.away)
