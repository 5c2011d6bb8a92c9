"""How much of an engine's memory models take."""

from pathlib import Path

import numpy as np
import pytest

from server.cuda import Gpu
from server.engine.memory import Meter

MB = 10**6


TOLD = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell")


@TOLD
def test_what_models_take_is_told_from_what_is_taken_apart() -> None:
    meter = Meter(gpu=False)
    with meter.apart():
        runtime = np.ones(40 * MB, np.uint8)
    model = np.ones(80 * MB, np.uint8)
    assert abs(meter.taken_bytes() - len(model)) < 10 * MB
    del model
    assert meter.taken_bytes() < 10 * MB
    assert runtime.all()


@TOLD
def test_models_meant_for_a_gpu_take_the_machines_memory_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.cuda.runtime", None)
    meter = Meter(gpu=True)
    model = np.ones(80 * MB, np.uint8)
    assert abs(meter.taken_bytes() - len(model)) < 10 * MB


def test_on_a_gpu_models_take_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([500 * MB, 580 * MB])
    monkeypatch.setattr("server.cuda.find_gpu", lambda: Gpu("one", "sm90"))
    monkeypatch.setattr("server.cuda.used_bytes", lambda: next(used))
    assert Meter(gpu=True).taken_bytes() == 80 * MB
