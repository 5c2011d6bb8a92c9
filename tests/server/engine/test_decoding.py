"""The threads that decode."""

import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

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
