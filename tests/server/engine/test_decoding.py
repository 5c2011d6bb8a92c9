"""The threads that decode."""

import os
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from server.engine.decoding import LOWEST, Decoders, Size


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
@pytest.mark.parametrize("last", [True, False])
def test_who_comes_last_takes_cpu_time_that_nobody_else_wants(*, last: bool) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    found: list[int] = []

    def decode(_: bytes, _preprocessing: Any, _outs: Sequence[Any]) -> Size:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return 1, 1

    decoders = Decoders(decode, 1, last=last)
    nothing: Any = None
    try:
        decoders.submit(b"", nothing, [], lambda: True).result(10)
    finally:
        decoders.close(wait=True)
    assert found == [LOWEST if last else own]
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_a_cancelled_image_takes_no_memory_while_others_are_decoded() -> None:
    begun, gate = threading.Event(), threading.Event()

    def decode(_: bytes, _preprocessing: Any, _outs: Sequence[Any]) -> Size:
        begun.set()
        assert gate.wait(10)
        return 1, 1

    decoders = Decoders(decode, 1)
    nothing: Any = None
    try:
        decoders.submit(b"", nothing, [], lambda: True)
        assert begun.wait(10)
        image = np.zeros((1, 1, 3), np.uint8)
        there = weakref.ref(image)
        assert decoders.submit(image, nothing, [], lambda: True).cancel()
        del image
        assert there() is None
    finally:
        gate.set()
        decoders.close(wait=True)
