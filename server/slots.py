"""Shared-memory slots: the pixels of every request between decoding and its answer.

The supervisor creates them, so they outlive an engine or HTTP worker that is killed. Each HTTP worker owns a range of
slots and alone decides which are free; the engine reads the pixels and marks the slots of the batch it runs.
"""

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server import portable

ALIGNMENT = 64  # bytes: a cache line


def needed_bytes(count: int, slot_bytes: int, workers: int = 1, engines: int = 1) -> int:
    """Bytes of shared memory for `count` slots and the table of work under way."""
    return _aligned(8 * workers * engines) + _aligned(count) + count * _aligned(slot_bytes)


def more_room() -> str:
    """Advice for when shared memory is too small."""
    return "give /dev/shm more room (docker: --shm-size)" if portable.LINUX else f"free some of {tempfile.gettempdir()}"


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Slots:
    """`count` slots of `slot_bytes` bytes, each with a flag: whether its job is in a running batch."""

    def __init__(
        self, count: int, slot_bytes: int, workers: int = 1, engines: int = 1, descriptor: int | None = None
    ) -> None:
        """Create the memory, or map that of `descriptor` and take ownership of the descriptor.

        Raises:
            OSError: there is not enough shared memory.
        """
        self.count = count
        self.slot_bytes = slot_bytes
        self._stride = _aligned(slot_bytes)
        self._of_table = workers, engines
        table = _aligned(8 * workers * engines)
        self._header = table + _aligned(count)
        size = needed_bytes(count, slot_bytes, workers, engines)
        self._descriptor = _new_memory(size) if descriptor is None else descriptor
        weakref.finalize(self, os.close, self._descriptor)
        self._bytes = np.ndarray(size, np.uint8, mmap.mmap(self._descriptor, size))
        self.work_s: NDArray[np.float64] = (
            self._bytes[: 8 * workers * engines].view(np.float64).reshape(workers, engines)
        )
        """float64[workers, engines]: seconds of inference that each HTTP worker has under way at each engine. A worker
        writes only its own row."""
        self.running: NDArray[np.bool_] = self._bytes[table : table + count].view(np.bool_)
        """bool[count]: set by the engine while a batch runs, cleared by the owner when it takes the slot. Flags still
        set when an engine dies mark the batch it died in."""

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The whole memory, as bytes."""
        return self._bytes

    def pixels(self, slot: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """uint8 view of `shape` on a slot's memory.

        Raises:
            ValueError: as `all_pixels`.
        """
        pixels: NDArray[np.uint8] = self.all_pixels(shape)[slot]
        return pixels

    def all_pixels(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """uint8[count, *shape]: a view on the memory of each slot.

        Raises:
            ValueError: the shape needs more than `slot_bytes`.
        """
        if math.prod(shape) > self.slot_bytes:
            raise ValueError(f"{shape} does not fit a slot of {self.slot_bytes} bytes")
        _, width, channels = shape
        strides = self._stride, width * channels, channels, 1
        return np.ndarray((self.count, *shape), np.uint8, self._bytes, self._header, strides)

    def __reduce__(self) -> tuple[Callable[..., "Slots"], tuple[object, ...]]:
        """Pickle for a process that is being started: it maps the same memory."""
        return _attached, (self.count, self.slot_bytes, *self._of_table, reduction.DupFd(self._descriptor))


def _new_memory(size: int) -> int:
    """Descriptor of new shared memory. It has no name, so the kernel frees it however its processes end."""
    with tempfile.TemporaryFile(dir=portable.shared_memory()) as file:
        portable.reserve(file, size)  # now: touching a page that cannot be allocated later kills the process
        return os.dup(file.fileno())


def _attached(count: int, slot_bytes: int, workers: int, engines: int, handed: Any) -> Slots:
    return Slots(count, slot_bytes, workers, engines, handed.detach())
