"""What only Linux has, and what the server uses in its place on other systems, such as macOS.

The tests run a server with all of it taken away (`tests/server/test_portable.py`); the pages on operations say
what else is different there.
"""

import math
import os
import select
import sys
import tempfile
import weakref
from typing import IO

LINUX = sys.platform == "linux"
_ZEROS = bytes(2**20)
_RING = (1).to_bytes(8, sys.byteorder)  # an eventfd takes no less


def shared_memory() -> str:
    """The folder whose files are shared memory; elsewhere they are on a disk, from which little of them is ever read.

    macOS has shared memory without a folder, and no way to take all of its pages at the start.
    """
    return "/dev/shm" if LINUX else tempfile.gettempdir()  # noqa: S108


def reserve(file: IO[bytes], size: int) -> None:
    """Take `size` bytes, all zero, for a new file.

    Raises:
        OSError: there is no room for them.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, len(_ZEROS)):
        file.write(_ZEROS[: size - start])
    file.flush()


class Bell:
    """Wakes a thread that waits for its descriptor to have something to read; any thread may ring it."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._out = self._in = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._out, self._in = os.pipe()
            os.set_blocking(self._out, False)
            os.set_blocking(self._in, False)
        for descriptor in {self._out, self._in}:
            weakref.finalize(self, os.close, descriptor)

    def fileno(self) -> int:
        """What to wait for."""
        return self._out

    def ring(self) -> None:
        """Wake whoever waits, and if nobody does, whoever waits next."""
        try:  # noqa: SIM105  `suppress` would cost every batch as much as the ringing
            os.write(self._in, _RING)
        except BlockingIOError:  # it has rung often enough
            pass

    def silence(self) -> None:
        """Forget that it has rung; it must have."""
        os.read(self._out, 2**16)


class _Poll:
    """`select.poll` with the methods and the unit of time of `select.epoll`."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register, self.modify, self.unregister = self._poll.register, self._poll.modify, self._poll.unregister

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """What is ready within so many seconds, as (descriptor, events)."""
        return self._poll.poll(math.ceil(timeout * 1e3))


def poller() -> "select.epoll | _Poll":
    """Waits for many descriptors; its events are `select.POLLIN` and `select.POLLOUT`."""
    return select.epoll() if hasattr(select, "epoll") else _Poll()
