"""Processes that tests start. Whatever becomes of the test, or of pytest itself, they end, with all that they started.

Each is the leader of a session of its own, which is killed as a whole. A guard, a process as well, is told of each
beginning and end; once pytest is gone, however it went, the guard kills what is left.
"""

import atexit
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

_GUARD = """
import os, signal, sys
left = set()
for line in sys.stdin:
    left ^= {int(line)}
for group in left:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


@cache
def _guard() -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-IS", "-c", _GUARD]
    guard = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(guard.communicate)  # which closes its input, and waits
    return guard


_running: set[int] = set()


def start(command: Sequence[str | Path], **options: Any) -> "subprocess.Popen[Any]":
    """Start a process as `subprocess.Popen` does; whoever does it hands it to `end` in `finally`."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    _running.add(process.pid)
    _tell_guard(process.pid)
    return process


def end(process: "subprocess.Popen[Any]") -> None:
    """Kill what is left of it and of what it started; its pipes stay open."""
    if process.pid in _running:
        with suppress(psutil.NoSuchProcess):
            for other in psutil.Process(process.pid).children(recursive=True):  # also those with sessions of their own
                with suppress(psutil.NoSuchProcess):
                    other.kill()
        _kill(process.pid)
        process.wait()
        _running.remove(process.pid)
        _tell_guard(process.pid)


def end_all() -> None:
    """Kill all that runs, from any thread: whoever waits for one of them, waits no longer."""
    for group in list(_running):
        _kill(group)


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Generator["subprocess.Popen[Any]"]:
    """A process that ends with the block."""
    with start(command, **options) as process:
        try:
            yield process
        finally:
            end(process)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _tell_guard(group: int) -> None:
    pipe = _guard().stdin
    assert pipe
    pipe.write(b"%d\n" % group)
    pipe.flush()
