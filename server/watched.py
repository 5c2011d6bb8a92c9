"""Files that are read again when they have changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Content = TypeVar("Content")


class Watched(Generic[Content]):
    """The contents of some files, read again once one has changed."""

    def __init__(self, read: Callable[..., Content], *paths: Path) -> None:
        """Call `read(*paths)`, whose errors are not caught."""
        self._read = read
        self._paths = paths
        self._seen = self._signature()
        self.content = read(*paths)

    def look(self, *, again: bool = False) -> bool:
        """Read the files if they have changed; whether `content` is new. If `read` raises, it keeps the old `content`.

        After a failure, the files are read only once one changes, or with `again`.
        """
        seen = self._signature()
        if seen == self._seen and not again:
            return False
        self._seen = seen
        self.content = self._read(*self._paths)
        return True

    def _signature(self) -> list[tuple[int, int, int] | None]:
        return [_signature(path) for path in self._paths]


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ctime_ns, status.st_ino, status.st_size  # a ctime also changes with permissions
