"""What happens to images that are offered to shadows, with a fake classifier and numbers as time."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from server.candidates import Candidate
from server.engine.classes import Classes
from server.engine.scheduler import Priority
from server.errors import Code, ServiceError
from server.repository import Catalogue, ModelKey, scan
from server.serving.leases import Leases
from server.serving.plan import Ask, Plan
from server.serving.shadows import CRASH_REST_S, DOWN_REST_S, MOST_BYTES, MOST_IMAGES, Agenda, Fate, Shadows
from server.settings import Settings
from tests import tiny


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """`new` gets every image of `main`, `half` every second one."""
    repository = tmp_path_factory.mktemp("repository")
    for name, share in {"main": None, "new": 1.0, "half": 0.5}.items():
        tiny.write(repository, name)
        if share:
            (repository / name / "serving.json").write_text(json.dumps({"shadow_of": "main", "share": share}))
    return scan(repository, default_model="main")


@pytest.fixture
def shadow(catalogue: Catalogue) -> Candidate:
    return catalogue.candidates.by_key[ModelKey("new", 1)]


def offered(agenda: Agenda, shadow: Candidate, size: int = 1, now_s: float = 0.0, *, is_loaded: bool = True) -> Fate:
    return agenda.offered(shadow, size, now_s, is_loaded=is_loaded)


def test_each_shadow_gets_its_share(catalogue: Catalogue) -> None:
    agenda, half = Agenda(), catalogue.candidates.by_key[ModelKey("half", 1)]
    assert [offered(agenda, half) for _ in range(4)] == [Fate.NOT_MEANT, Fate.WAITS] * 2


def test_so_many_wait_and_so_many_bytes_and_the_rest_is_dropped(shadow: Candidate) -> None:
    agenda = Agenda()
    assert [offered(agenda, shadow) for _ in range(MOST_IMAGES + 1)] == [Fate.WAITS] * MOST_IMAGES + [Fate.DROPPED]
    agenda.taken(1)
    assert [offered(agenda, shadow), offered(agenda, shadow)] == [Fate.WAITS, Fate.DROPPED]
    agenda = Agenda()
    assert offered(agenda, shadow, MOST_BYTES) is Fate.WAITS
    assert offered(agenda, shadow) is Fate.DROPPED
    agenda.taken(MOST_BYTES)
    assert offered(agenda, shadow) is Fate.WAITS


def test_what_no_engine_has_loaded_is_offered_nothing(shadow: Candidate) -> None:
    assert offered(Agenda(), shadow, is_loaded=False) is Fate.NOT_MEANT


def test_after_the_end_of_an_engine_all_rest_and_who_crashed_one_for_longer(catalogue: Catalogue) -> None:
    agenda, shadow = Agenda(), catalogue.candidates.by_key[ModelKey("new", 1)]
    agenda.engine_ended(10.0)
    assert offered(agenda, shadow, now_s=9.0 + DOWN_REST_S) is Fate.NOT_MEANT
    assert "ended in the last minute" in str(agenda.why_idle(shadow, 9.0 + DOWN_REST_S))
    assert offered(agenda, shadow, now_s=10.0 + DOWN_REST_S) is Fate.WAITS
    agenda.crashed(shadow, 100.0)
    assert offered(agenda, shadow, now_s=99.0 + CRASH_REST_S) is Fate.NOT_MEANT
    assert "crashed" in str(agenda.why_idle(shadow, 99.0 + CRASH_REST_S))
    assert offered(agenda, shadow, now_s=100.0 + CRASH_REST_S) is Fate.WAITS


def classes_of(best: int, *, batch_size: int = 1, inference_s: float = 0.25) -> Classes:
    return Classes(
        np.ones(1, np.float32), np.array([best], np.int32), np.empty(0, np.float32), 0.0, inference_s, batch_size
    )


class Counter:
    """A fake metric that records the labels of what was counted."""

    def __init__(self) -> None:
        self.found: list[tuple[str, ...]] = []
        self.observed: dict[str, list[float]] = {}

    def labels(self, *labels: str) -> "Counter":
        self._last = labels
        return self

    def inc(self) -> None:
        self.found.append(self._last)

    def observe(self, value: float) -> None:
        self.observed.setdefault(self._last[-1], []).append(value)


class Scene:
    """Shadows whose classifier gives the answers that the test puts into `answers`, once `gate` is open."""

    def __init__(self) -> None:
        self.answers: list[Classes | Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[tuple[bytes, str, Priority]] = []
        self.loaded = True
        self.leases = Leases()
        self.images, self.times = Counter(), Counter()
        metrics: Any = self
        self.shadows, self.shadow_inference = self.images, self.times  # as the metrics call them
        self.under_test = Shadows(cast("Any", self), self.leases, metrics)

    def has(self, _: str) -> bool:
        return self.loaded

    async def classify(self, image: bytes, model: Any, top_k: int, _: float, *, priority: Priority) -> list[Classes]:
        self.asked.append((image, model.key.name, priority))
        assert top_k == 1
        await self.gate.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    async def done(self, count: int) -> list[str]:
        """The outcomes, once there are `count`."""
        async with asyncio.timeout(10):
            while len(self.images.found) < count:  # noqa: ASYNC110 nobody is told
                await asyncio.sleep(0)
        return [labels[-1] for labels in self.images.found]


def play(scenario: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def scene() -> None:
        await scenario(Scene())

    asyncio.run(scene())


def plan_of(catalogue: Catalogue, **ask: Any) -> Plan:
    return Plan.of(Ask(**ask), catalogue.without({"half"}), Settings())


def test_answers_are_compared_with_those_that_were_given(catalogue: Catalogue) -> None:
    async def scenario(scene: Scene) -> None:
        scene.answers = [classes_of(7), classes_of(8, inference_s=0.5), classes_of(7, batch_size=2)]
        for image in (b"a", b"b", b"c"):
            scene.under_test.offer(plan_of(catalogue), image, classes_of(7))
        assert scene.asked == []  # shadows start only once the answer is on its way
        assert await scene.done(3) == ["agreed", "disagreed", "agreed"]
        assert scene.asked == [(image, "new", Priority.SHADOW) for image in (b"a", b"b", b"c")]
        assert scene.images.found[0] == ("new", "1", "main", "1", "agreed")
        assert scene.times.observed == {"main": [0.25, 0.25], "shadow": [0.25, 0.5]}  # of batches of one size

    play(scenario)


def test_what_fails_is_counted_and_what_comes_too_late_is_dropped(catalogue: Catalogue) -> None:
    async def scenario(scene: Scene) -> None:
        late = ServiceError(Code.DEADLINE_EXCEEDED, "late")
        scene.answers = [late, ServiceError(Code.INFERENCE_FAILED, "no"), ValueError("?"), classes_of(7)]
        for _ in range(4):
            scene.under_test.offer(plan_of(catalogue), b"a", classes_of(7))
        assert await scene.done(4) == ["dropped", "failed", "failed", "agreed"]

    play(scenario)


def test_what_an_engine_crashed_of_is_not_asked_again_soon(catalogue: Catalogue, shadow: Candidate) -> None:
    async def scenario(scene: Scene) -> None:
        scene.answers = [ServiceError(Code.ENGINE_CRASHED, "crashed")]
        for _ in range(2):
            scene.under_test.offer(plan_of(catalogue), b"a", classes_of(7))
        assert await scene.done(2) == ["failed", "dropped"]
        assert len(scene.asked) == 1
        assert "crashed" in str(scene.under_test.why_idle(shadow))

    play(scenario)


def test_its_model_is_needed_while_it_is_asked(catalogue: Catalogue) -> None:
    async def scenario(scene: Scene) -> None:
        drained: list[bool] = []
        scene.gate.clear()
        scene.answers = [classes_of(7)]
        scene.under_test.offer(plan_of(catalogue), b"a", classes_of(7))
        while not scene.asked:  # noqa: ASYNC110 nobody is told
            await asyncio.sleep(0)
        scene.leases.when_drained(frozenset(), lambda: drained.append(True))
        assert not drained
        scene.gate.set()
        await scene.done(1)
        assert drained

    play(scenario)


@pytest.mark.parametrize("left_out", [{"image": np.zeros((32, 32, 3), np.uint8)}, {"crops": 10}, {"version": 1}])
def test_only_images_with_a_format_and_one_crop_of_the_newest_version_are_meant(
    catalogue: Catalogue, left_out: dict[str, Any], tmp_path: Path
) -> None:
    async def scenario(scene: Scene) -> None:
        plan = plan_of(catalogue, crops=left_out.get("crops", 1))
        if "version" in left_out:
            tiny.write(tmp_path, "main")
            tiny.write(tmp_path, "main", 2)
            tiny.write(tmp_path, "new")
            (tmp_path / "new" / "serving.json").write_text('{"shadow_of": "main", "share": 1}')
            plan = Plan.of(Ask("main", 1), scan(tmp_path), Settings())
        scene.under_test.offer(plan, left_out.get("image", b"a"), classes_of(7))
        scene.loaded = False
        scene.under_test.offer(plan_of(catalogue), b"a", classes_of(7))
        await asyncio.sleep(0)
        assert (scene.asked, scene.images.found) == ([], [])

    play(scenario)
