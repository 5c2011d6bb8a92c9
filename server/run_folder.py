"""The folder of one run below TMPDIR: metrics and sockets. It ends with its run, or at the next start."""

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TextIO

from server import portable

PREFIX = "resnet-serving-"
OWNER = "owner"
"""A file in it that the run holds a lock on. The kernel drops a lock whatever a process dies of, and unlike the number
of a process it means the same in every container that shares the folder."""

log = logging.getLogger(__name__)


MAX_SOCKET_PATH = 107 if portable.LINUX else 103
"""Bytes of a Unix socket's address (unix(7), and unix(4) of the BSDs)."""


def is_too_long() -> bool:
    """Whether the path of TMPDIR leaves no room for that of a socket in a run's folder."""
    longest = Path(tempfile.gettempdir()) / f"{PREFIX}12345678" / "listener-12345678"
    return len(os.fsencode(longest)) > MAX_SOCKET_PATH


class RunFolder:
    """A new folder, the run's own; what dead runs have left is removed."""

    def __init__(self) -> None:
        """Make it.

        Raises:
            OSError: there is no folder for temporary files, or no room in it.
        """
        remove_stale()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.ExitStack() as unclaimed:
            unclaimed.callback(shutil.rmtree, self.path, ignore_errors=True)
            self._owner = _claim(self.path)
            unclaimed.pop_all()

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._owner.close()


def remove_stale() -> None:
    """Remove this user's folders whose run has died without removing them."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # of somebody else, or gone meanwhile
            if _is_stale(path):
                shutil.rmtree(path)
                log.info("removed %s, which a killed server has left", path)


def _is_stale(path: Path) -> bool:
    """Whether it is a folder of this user's that was locked and is not any more; one without its file may be new."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    descriptor = os.open(path / OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
    return True


def _claim(path: Path) -> TextIO:
    """Lock the file before it has its name, so that nobody ever sees it unlocked."""
    new = path / f"{OWNER}.new"
    owner = new.open("w")
    fcntl.flock(owner, fcntl.LOCK_EX)
    owner.write(f"{os.getpid()}\n")  # for people
    owner.flush()
    new.rename(path / OWNER)
    return owner
