"""Limits the bytes of uploads that are in memory at one time."""

from collections.abc import Generator
from contextlib import contextmanager

from server.errors import Code, ServiceError


class Buffers:
    """Counts the bytes of one process's uploads; each upload has a limit, and all together have one."""

    def __init__(self, max_body_bytes: int, max_buffered_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_buffered_bytes = max_buffered_bytes
        self._buffered_bytes = 0

    def add(self, size: int) -> None:
        """Add `size` bytes to the count, or remove them if it is negative. Call `check` afterwards."""
        self._buffered_bytes += size

    def check(self, size: int) -> None:
        """Refuse an upload of which `size` bytes have arrived.

        Raises:
            ServiceError: BODY_TOO_LARGE, or QUEUE_FULL if all uploads together take too much memory.
        """
        if size > self._max_body_bytes:
            raise ServiceError(Code.BODY_TOO_LARGE, f"an upload may have at most {self._max_body_bytes} bytes")
        if self._buffered_bytes > self._max_buffered_bytes:
            raise ServiceError(Code.QUEUE_FULL, "the server holds too many uploads in memory; try again later")

    @contextmanager
    def held(self, size: int) -> Generator[None]:
        """Count `size` bytes, already in memory, until the block ends.

        Raises:
            ServiceError: as `check`.
        """
        self.add(size)
        try:
            self.check(size)
            yield
        finally:
            self.add(-size)
