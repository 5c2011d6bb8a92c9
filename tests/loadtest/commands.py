"""Runs commands as a person does, but in this process: starting an interpreter takes longer than most tests."""

import runpy
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

from loadtest import command

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str | Path) -> CompletedProcess[str]:
    """What `python loadtest/SCRIPT ARGUMENTS` prints, and how it ends."""
    path = str(ROOT / "loadtest" / script)
    return _ended([path, *map(str, arguments)], lambda: runpy.run_path(path, run_name="__main__"))


def call(main: Callable[[], int], *arguments: str | Path) -> CompletedProcess[str]:
    """The same for a command whose module a test has patched."""
    return _ended(["command", *map(str, arguments)], lambda: sys.exit(command.run(main)))


def _ended(argv: list[str], what: Callable[[], object]) -> CompletedProcess[str]:
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    out, err = StringIO(), StringIO()
    try:
        with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
            what()
    except SystemExit as ended:
        return CompletedProcess(argv, int(ended.code or 0), out.getvalue(), err.getvalue())
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    raise AssertionError(f"{argv[0]} does not end with an exit code")
