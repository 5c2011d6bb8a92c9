"""What API keys have used of their limits, in all HTTP workers together: a small file for each key that has any."""

import contextlib
import fcntl
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct


@dataclass(slots=True)
class Used:
    """Of one key's limits."""

    full_s: float
    """When its burst is whole again, by the monotonic clock, which all processes of a machine share."""
    running: list[int]
    """Requests under way, in each HTTP worker."""


class Usage:
    """One HTTP worker's way to what all of them count.

    Who counts holds the file's lock meanwhile, some microseconds. The kernel drops it whatever a process dies of.
    """

    def __init__(self, folder: Path, worker: int, workers: int) -> None:
        """Nothing is under way in this worker, whatever one before it may have left."""
        self.worker = worker
        self._folder = folder
        self._format = Struct(f"d{workers}I")
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in folder.iterdir():
            with self.of(path.name) as used:
                used.running[worker] = 0

    @contextlib.contextmanager
    def of(self, name: str, create: int = os.O_CREAT) -> Generator[Used]:
        """What a key has used. Changes are kept, unless an exception ends the block.

        Raises:
            FileNotFoundError: nothing was counted, and `create` is 0.
        """
        descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC | create, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            content = os.pread(descriptor, self._format.size, 0) or bytes(self._format.size)
            full_s, *running = self._format.unpack(content)
            used = Used(full_s, running)
            yield used
            os.pwrite(descriptor, self._format.pack(used.full_s, *used.running), 0)
        finally:
            os.close(descriptor)

    def forget(self, name: str) -> None:
        """Of a key that is known no more."""
        (self._folder / name).unlink(missing_ok=True)
