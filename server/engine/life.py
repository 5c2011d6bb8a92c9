"""Tells an HTTP worker that an engine's process is dying, before the process's sockets close.

The kernel closes a dead process's sockets only after it has freed the memory, which takes 10 ms or more for each
100 MB. It reports the end of a single thread before that, unless this thread is the last of its process, which frees
the memory. So a worker watches two threads: whichever of them ends first is not the last.

This needs Linux 6.9. Elsewhere only the closed socket tells.
"""

import os
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

from server import portable

_NAME = "life"
_PEER = struct.Struct("3i")  # ucred of unix(7): pid, uid, gid
_OF_THREAD = os.O_EXCL  # PIDFD_THREAD of pidfd_open(2)


def show() -> None:
    """Start the second thread that `watch` finds; it sleeps until this process ends."""
    if portable.LINUX:
        named = threading.Event()
        threading.Thread(target=_sleep, args=(named,), name=_NAME, daemon=True).start()
        named.wait()


def watch(engine: socket.socket) -> list[int]:
    """Open descriptors that become readable as soon as the process at the other end of a socket is dying.

    The caller closes them. There are none where the system cannot tell.
    """
    found: list[int] = []
    with suppress(OSError, AttributeError):
        pid = _PEER.unpack(engine.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        tasks = Path(f"/proc/{pid}/task")
        other = next((int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().strip() == _NAME), None)
        for thread in (pid, other) if other else ():
            found.append(os.pidfd_open(thread, _OF_THREAD))  # noqa: PERF401 the first must not be lost if the next fails
    return found


def _sleep(named: threading.Event) -> None:
    with suppress(OSError):
        Path("/proc/thread-self/comm").write_text(_NAME)
    named.set()
    threading.Event().wait()
