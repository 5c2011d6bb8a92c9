"""The decoders of one process: threads that turn compressed images into the network's pixels."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.manifest import Preprocessing

Image = bytes | NDArray[np.uint8]
"""A compressed image, or pixels that need no decoding: uint8[H, W, 3], RGB. Only a decoder reads it."""
Size = tuple[int, int]
"""Width and height of a photo, upright."""
Decode = Callable[[bytes, Preprocessing, Sequence[NDArray[np.uint8]]], Size]
"""Writes each crop of a compressed image, uint8[H, W, 3], RGB, into one of the arrays; returns the image's size."""


LOWEST = 19
"""The niceness with the lowest priority (nice(2))."""


class Decoded(NamedTuple):
    """How an image was decoded; times by the monotonic clock."""

    started_s: float
    ended_s: float
    size: Size = (0, 0)


class Decoders:
    """A bounded pool of decoder threads, which knows how long each has been at its image."""

    def __init__(self, decode: Decode, threads: int, *, last: bool = False) -> None:
        """Use this many threads; with `last`, at the lowest priority: they get the CPU time that all others leave."""
        self._decode = decode
        self._threads = ThreadPoolExecutor(threads, "decode", _come_last if last else None)
        self._started_s: dict[object, float] = {}  # of images being decoded; each key is a unique object

    def submit(
        self,
        image: Image,
        preprocessing: Preprocessing,
        outs: Sequence[NDArray[np.uint8]],
        wanted: Callable[[], bool],
    ) -> "Future[Decoded | None]":
        """Decode into `outs`, which belong to a thread until the future is done; None if no longer `wanted`.

        Raises:
            RuntimeError: the system has no thread left, and no existing one will decode this image.
        """
        decoding: Future[Decoded | None] = Future()
        waiting = [image]  # cleared when it is cancelled: the pool keeps what was submitted until a thread comes to it
        decoding.add_done_callback(lambda _: waiting.clear())

        def run() -> None:
            if decoding.set_running_or_notify_cancel():
                try:
                    decoding.set_result(self._run(waiting.pop(), preprocessing, outs, wanted))
                except BaseException as error:
                    decoding.set_exception(error)

        try:
            self._threads.submit(run)
        except RuntimeError:
            if decoding.cancel():  # otherwise an existing thread has begun
                raise
        return decoding

    def longest_s(self) -> float:
        """How long the slowest decoder has been at its image; 0 if none is at work."""
        now_s = time.monotonic()
        return max((now_s - started_s for started_s in self._started_s.copy().values()), default=0.0)

    def close(self, *, wait: bool) -> None:
        """Start no more images; `wait` for those being decoded."""
        self._threads.shutdown(wait=wait, cancel_futures=True)

    def _run(
        self,
        image: Image,
        preprocessing: Preprocessing,
        outs: Sequence[NDArray[np.uint8]],
        wanted: Callable[[], bool],
    ) -> Decoded | None:
        if not wanted():
            return None
        started_s = time.monotonic()
        work = object()
        self._started_s[work] = started_s
        try:
            if isinstance(image, bytes):
                size = self._decode(image, preprocessing, outs)
            else:
                (out,) = outs
                out[...] = image
                size = (0, 0)  # there was no photo
        finally:
            del self._started_s[work]
        return Decoded(started_s, time.monotonic(), size)


def _come_last() -> None:
    """Give this thread the lowest priority; only on Linux, as elsewhere this would apply to the whole process."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
