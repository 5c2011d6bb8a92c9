"""How much of an engine's memory models take."""

from pathlib import Path

import numpy as np
import pytest

from server.engine.memory import Meter

MB = 10**6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell")
def test_what_models_take_is_told_from_what_is_taken_apart() -> None:
    meter = Meter(gpu=False)
    with meter.apart():
        runtime = np.ones(40 * MB, np.uint8)
    model = np.ones(80 * MB, np.uint8)
    assert abs(meter.taken_bytes() - len(model)) < 10 * MB
    del model
    assert meter.taken_bytes() < 10 * MB
    assert runtime.all()


def test_a_gpu_that_cannot_be_asked_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.cuda.runtime", None)
    assert Meter(gpu=True).taken_bytes() == 0
