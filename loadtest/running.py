"""A server of our own to measure, and the processes that it is made of."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil

STOP_S = 30.0
"""What the server is given to drain."""


class StartError(Exception):
    """The server did not start; the message has its log."""


@contextmanager
def server(
    *flags: str, environment: Mapping[str, str] | None = None, quiet: bool = False
) -> Generator[tuple[str, psutil.Process]]:
    """A server on a free port, set up as always by `SERVER_...` in the environment, and where it is.

    `quiet` keeps its log to itself once it is ready.

    Raises:
        StartError: it does not start.
    """
    command = [sys.executable, "-m", "server", "--port", "0", "--log-level", "info", *flags]
    variables = {**os.environ, **(environment or {})}
    with (
        Path(os.devnull).open("w") if quiet else nullcontext(sys.stderr) as log,
        subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process,  # noqa: S603
    ):
        reader = threading.Thread(target=shutil.copyfileobj, args=(process.stderr, log), daemon=True)
        try:
            yield _ready_url(process, reader), psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            if reader.ident:
                reader.join(STOP_S)


def tree(process: psutil.Process | None) -> list[psutil.Process]:
    """A process and its descendants."""
    return [process, *process.children(recursive=True)] if process else []


def _ready_url(process: subprocess.Popen[str], reader: threading.Thread) -> str:
    """Where the server says that it is ready; from then on its log goes to standard error."""
    log: list[str] = []
    for line in process.stderr or ():
        log.append(line)
        if ready := re.search(r"ready on (http://\S+)", line):
            reader.start()
            return ready[1]
    raise StartError(f"the server did not start:\n{''.join(log)}")
