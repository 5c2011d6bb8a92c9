"""The folder of one run, below TMPDIR, for metrics and sockets. If its run is killed, the next start removes it."""

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
"""File in the folder that the run keeps locked. The kernel releases the lock however the process dies, and unlike a
process id a lock means the same in every container that shares the folder."""

log = logging.getLogger(__name__)


MAX_SOCKET_PATH = 107 if portable.LINUX else 103
"""Most bytes in the path of a Unix socket (unix(7), and unix(4) of the BSDs)."""


def is_too_long() -> bool:
    """Whether TMPDIR is too long for the path of a socket in a run's folder."""
    longest = Path(tempfile.gettempdir()) / f"{PREFIX}12345678" / "listener-12345678"
    return len(os.fsencode(longest)) > MAX_SOCKET_PATH


class RunFolder:
    """A new folder for this run."""

    def __init__(self) -> None:
        """Make it, after removing the folders that killed runs have left.

        Raises:
            OSError: there is no folder for temporary files, or no room in it.
        """
        remove_stale()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.ExitStack() as unclaimed:
            unclaimed.callback(shutil.rmtree, self.path, ignore_errors=True)
            self._owner = _claim(self.path)
            self._folder = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._folder, fcntl.LOCK_EX)  # has systemd-tmpfiles leave it alone, however old its files
            unclaimed.pop_all()

    def remove(self) -> None:
        """Remove the folder and its contents."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._owner.close()
        os.close(self._folder)


def remove_stale() -> None:
    """Remove this user's folders of runs that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, still locked, or removed meanwhile
            if _is_stale(path):
                shutil.rmtree(path)
                log.info("removed %s, left by a killed server", path)


def _is_stale(path: Path) -> bool:
    """Whether this is this user's folder, and nobody holds its lock any more.

    Raises:
        OSError: the lock is held, or the file is missing, since the folder may be new.
    """
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
    """Make the owner's file, locked before it gets its name, so that nobody ever sees it unlocked."""
    new = path / f"{OWNER}.new"
    owner = new.open("w")
    fcntl.flock(owner, fcntl.LOCK_EX)
    owner.write(f"{os.getpid()}\n")  # for people
    owner.flush()
    new.rename(path / OWNER)
    return owner
