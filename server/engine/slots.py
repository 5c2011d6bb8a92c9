"""Shared-memory slots: the pixels of every request between decoding and its answer.

The supervisor creates them, so they outlive an engine or HTTP worker that is killed. Each HTTP worker owns a range of
slots and alone decides which are free; the engine reads the pixels and marks what it runs.
"""

import math
import os
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes: a cache line


def needed_bytes(count: int, slot_bytes: int) -> int:
    """What so many slots take of the shared memory."""
    return _aligned(count) + count * _aligned(slot_bytes)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Slots:
    """`count` slots of `slot_bytes` bytes, each with a flag that tells whether its job is in a running batch."""

    def __init__(self, count: int, slot_bytes: int, name: str | None = None) -> None:
        """Create the memory, or attach to the one called `name`.

        Raises:
            OSError: there is not enough shared memory.
        """
        self.count = count
        self.slot_bytes = slot_bytes
        self._stride = _aligned(slot_bytes)
        self._header = _aligned(count)
        self._memory = SharedMemory(name, create=name is None, size=needed_bytes(count, slot_bytes))
        if name is None:
            self._reserve()
        self._bytes = np.ndarray(self._memory.size, np.uint8, self._memory.buf)
        self.running: NDArray[np.bool_] = self._bytes[:count].view(np.bool_)
        """bool[count]: set by the engine while a batch runs, cleared by the owner when it takes the slot. What is set
        when an engine dies was in the batch that it died of."""

    def _reserve(self) -> None:
        """Have the memory now: a page that cannot be had later kills whoever touches it, without a word.

        Raises:
            OSError: there is not so much.
        """
        descriptor = os.open(f"/dev/shm/{self._memory.name}", os.O_RDWR)  # noqa: S108 where Linux has shared memory
        try:
            os.posix_fallocate(descriptor, 0, self._memory.size)
        except OSError:
            self.unlink()
            raise
        finally:
            os.close(descriptor)

    @property
    def memory(self) -> NDArray[np.uint8]:
        """All of it, as bytes."""
        return self._bytes

    def pixels(self, slot: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """uint8 view of `shape` on a slot's memory; it must not outlive this object, which unmaps the memory.

        Raises:
            ValueError: the shape needs more than `slot_bytes`.
        """
        size = math.prod(shape)
        if size > self.slot_bytes:
            raise ValueError(f"{shape} does not fit a slot of {self.slot_bytes} bytes")
        start = self._header + slot * self._stride
        return self._bytes[start : start + size].reshape(shape)

    def __reduce__(self) -> tuple[type["Slots"], tuple[int, int, str]]:
        """Pickled by name: another process gets the same memory."""
        return Slots, (self.count, self.slot_bytes, self._memory.name)

    def unlink(self) -> None:
        """Remove the memory's name: it is freed when the last process that has it mapped ends."""
        self._memory.unlink()
