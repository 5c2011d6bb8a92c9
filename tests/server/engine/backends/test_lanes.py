"""Several batches at one time, if measurements show that it is faster."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models import manifest
from server.engine import backends
from server.engine.backends import Outputs, lanes
from server.engine.backends.onnx import OnnxBackend
from server.engine.classes import Extras
from server.settings import Settings
from tests import tiny

IMAGE = np.zeros((32, 32, 3), np.uint8)
OUTPUTS = Outputs(*(np.zeros((1, 1), kind) for kind in (np.float32, np.int32, np.float32)))  # type: ignore[arg-type]


class Machine:
    """A clock that only batches advance: by these seconds for each way of running them, however many run at once."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.now_s = 0.0
        self._seconds = seconds
        self._lock = threading.Lock()

    def run_with(self, threads: int) -> lanes.Run:
        def run(images: Sequence[NDArray[np.uint8]]) -> Outputs:
            with self._lock:
                self.now_s += self._seconds[threads] * len(images)
            return OUTPUTS

        return run


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        ({2: 1.0, 1: 0.8}, 2),  # seconds for an image, by the threads that work on each batch
        ({2: 1.0, 1: 0.97}, None),
        ({2: 1.0, 1: 1.3}, None),
        ({4: 1.0, 2: 0.9, 1: 0.7}, 4),
        ({4: 1.0, 2: 0.7, 1: 0.9}, 2),
        ({1: 1.0}, None),
    ],
)
def test_several_at_a_time_are_chosen_where_they_are_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], count: int | None
) -> None:
    machine, threads = Machine(seconds), max(seconds)
    monkeypatch.setattr("server.engine.backends.lanes.time.perf_counter", lambda: machine.now_s)
    chosen = lanes.choose(machine.run_with(threads), machine.run_with, threads, [[IMAGE], [IMAGE] * 8])
    assert (chosen.instances if chosen else None) == count


def test_a_lone_batch_gets_all_threads_and_those_beside_it_share_them() -> None:
    others: list[int] = []

    def beside(images: Sequence[NDArray[np.uint8]], _wanted: Extras = Extras.NONE) -> Outputs:
        others.append(len(images))
        return OUTPUTS

    class Session:
        """Waits within a batch until the test has had another run beside it."""

        started, go_on = threading.Event(), threading.Event()

        def run(self, names: Sequence[str], _inputs: object) -> list[NDArray[np.generic]]:
            self.started.set()
            assert self.go_on.wait(10)
            return [np.zeros(1)] * len(names)

    backend = OnnxBackend(Session(), 2, beside)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(backend.run, [IMAGE])
        try:
            assert Session.started.wait(10)
            backend.run([IMAGE] * 3)
            assert others == [3]
        finally:
            Session.go_on.set()
        first.result()
    backend.run([IMAGE])
    assert others == [3]


def test_a_model_that_is_measured_answers_as_any_other(tmp_path: Path) -> None:
    found = tiny.write(tmp_path)
    content = manifest.read_model_file(tmp_path / found.name / "1", found)
    backend = backends.load(found, content, Settings(instances=0, inference_threads=2, max_batch=2))
    assert backend.instances in (1, 2)
    assert backend.run([IMAGE + 7]).indices[0, 0] == 7
