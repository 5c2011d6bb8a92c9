"""Starts processes for tests and ends them, with all their descendants, even if the test or pytest itself dies.

Each process leads a session of its own, which is killed as a whole. A guard process is told of each start and end;
once pytest has gone, for whatever reason, the guard kills what is left.
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
    atexit.register(guard.communicate)  # closes its input and waits for it
    return guard


_running: set[int] = set()


def start(command: Sequence[str | Path], **options: Any) -> "subprocess.Popen[Any]":
    """Start a process as `subprocess.Popen` does; the caller passes it to `end` in `finally`."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    _running.add(process.pid)
    _tell_guard(process.pid)
    return process


def end(process: "subprocess.Popen[Any]") -> None:
    """Kill the process and its descendants, if any still run; its pipes stay open."""
    if process.pid in _running:
        with suppress(psutil.NoSuchProcess):
            for other in psutil.Process(process.pid).children(recursive=True):  # even those in other sessions
                with suppress(psutil.NoSuchProcess):
                    other.kill()
        _kill(process.pid)
        process.wait()
        _running.remove(process.pid)
        _tell_guard(process.pid)


def end_all() -> None:
    """Kill every running process, from any thread, so that nothing waits for one any longer."""
    for group in list(_running):
        _kill(group)


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Generator["subprocess.Popen[Any]"]:
    """Start a process, and end it when the block ends."""
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
