"""Features that only Linux has, and their substitutes on other systems, such as macOS.

The tests also run a server without these features (`tests/server/test_portable.py`); the pages on operations describe
the other differences.
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
_RING = (1).to_bytes(8, sys.byteorder)  # an eventfd accepts only 8 bytes


def shared_memory() -> str:
    """The folder whose files are shared memory. Elsewhere they are on disk, but are hardly ever read from it.

    macOS has shared memory, but without a folder, and without a way to allocate all its pages at the start.
    """
    return "/dev/shm" if LINUX else tempfile.gettempdir()  # noqa: S108


def reserve(file: IO[bytes], size: int) -> None:
    """Allocate `size` zero bytes for a new file.

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
    """Wakes a thread that waits for this bell's descriptor to become readable; any thread may ring it."""

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
        """The descriptor to wait for."""
        return self._out

    def ring(self) -> None:
        """Wake the thread that waits, or that waits next."""
        try:  # noqa: SIM105  `suppress` would cost every batch as much as the ringing
            os.write(self._in, _RING)
        except BlockingIOError:  # full of rings already
            pass

    def silence(self) -> None:
        """Reset the bell, which must have rung."""
        os.read(self._out, 2**16)


class _Poll:
    """`select.poll` with the methods and the unit of time of `select.epoll`."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register, self.modify, self.unregister = self._poll.register, self._poll.modify, self._poll.unregister

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """The descriptors that are ready within `timeout` seconds, as (descriptor, events)."""
        return self._poll.poll(math.ceil(timeout * 1e3))


def poller() -> "select.epoll | _Poll":
    """An object that waits for many descriptors; its events are `select.POLLIN` and `select.POLLOUT`."""
    return select.epoll() if hasattr(select, "epoll") else _Poll()
