"""How the death of an engine is seen before its socket closes."""

import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.engine import life

ENGINE = """
import os, socket, sys
from server.engine import life
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
if len(sys.argv) > 2:
    life.show()
print("listening", flush=True)
connected = listener.accept()[0]
if os.fork() == 0:  # keeps the connection open whatever becomes of the engine, until the test ends
    sys.stdin.read()
    os._exit(0)
print("accepted", flush=True)
os.read(os.pipe()[0], 1)  # for ever
"""
PATIENCE_MS = 10_000
"""Only a failure waits for it."""


def _can_watch_threads() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid(), os.O_EXCL))
    except (OSError, AttributeError):
        return False
    return True


def watched(folder: Path, held: ExitStack, *options: str) -> tuple[int, socket.socket, list[int]]:
    """A process that listens as an engine does: its number, a connection to it, and what tells that it is dying."""
    address = folder / "engine"
    arguments = [sys.executable, "-c", ENGINE, str(address), *options]
    engine = held.enter_context(subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    held.callback(engine.kill)
    assert engine.stdout is not None
    assert engine.stdout.readline() == b"listening\n"
    connected = held.enter_context(socket.socket(socket.AF_UNIX))
    connected.connect(str(address))
    assert engine.stdout.readline() == b"accepted\n"
    found = life.watch(connected)
    for descriptor in found:
        held.callback(os.close, descriptor)
    return engine.pid, connected, found


@pytest.mark.skipif(not _can_watch_threads(), reason="only Linux 6.9 and later report the end of a thread")
def test_a_dying_engine_is_seen_while_its_socket_is_still_open(tmp_path: Path) -> None:
    with ExitStack() as held:
        pid, connected, found = watched(tmp_path, held, "show")
        ready = select.poll()
        for descriptor in (connected.fileno(), *found):
            ready.register(descriptor, select.POLLIN)
        assert ready.poll(0) == []
        os.kill(pid, signal.SIGKILL)
        seen = [descriptor for descriptor, _ in ready.poll(PATIENCE_MS)]
        assert seen
        assert set(seen) <= set(found)


def test_where_threads_cannot_be_watched_the_socket_must_do(tmp_path: Path) -> None:
    with ExitStack() as held:
        *_, found = watched(tmp_path, held)
        assert found == []
