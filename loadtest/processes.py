"""Start a server to measure, find all its processes, even detached ones, and stop them together."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from loadtest.command import LoadTestError

ROOT = Path(__file__).parents[1]
STOP_S = 30.0
"""Grace period for a server to drain and exit before SIGKILL."""
POLL_S = 0.02
_MARK = "LOADTEST_MARK"
_LOG_TAIL_BYTES = 2000


class StartError(LoadTestError):
    """The server did not start, or has ended; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that was started."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    started_s: float
    """by time.monotonic"""

    @property
    def has_ended(self) -> bool:
        """Its foreground process has exited."""
        return self.process.poll() is not None

    def members(self) -> list[psutil.Process]:
        """All its processes: descendants, and daemons that left the tree but inherited its environment."""
        found: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            # after it has ended, another process may have its id
            found = [] if self.has_ended else tree(psutil.Process(self.process.pid))
        return [*found, *(other for other in psutil.process_iter() if self._is_marked(other) and other not in found)]

    def log_tail(self) -> str:
        """The end of what it printed."""
        return self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def stop(self) -> None:
        """Send SIGTERM, wait for at most STOP_S, then kill what is left."""
        if not self.has_ended:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        while left := [member for member in self.members() if member.is_running()]:
            for member in left:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(left, timeout=1)

    def _is_marked(self, other: psutil.Process) -> bool:
        try:
            return other.status() != psutil.STATUS_ZOMBIE and other.environ().get(_MARK) == self.mark
        except psutil.Error:
            return False


@dataclass(frozen=True, slots=True)
class Serving:
    """A server of this project that has become ready."""

    running: Running
    ready_file: Path

    @property
    def url(self) -> str:
        """Its HTTP address."""
        return str(self._ready()["url"])

    def members(self) -> list[psutil.Process]:
        """All its processes."""
        return tree(psutil.Process(self.running.process.pid))

    @property
    def children(self) -> dict[str, int]:
        """Process ids of those that are ready now, by name: "engine", "http-0"."""
        return dict(self._ready()["processes"])

    def _ready(self) -> dict[str, Any]:
        """What the ready file says.

        Raises:
            StartError: the server has ended.
        """
        try:
            return dict(json.loads(self.ready_file.read_text()))
        except FileNotFoundError as error:
            raise StartError(f"the server has ended{_reason(self.running.log_tail())}") from error


@contextmanager
def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    working_folder: Path = ROOT,
    *,
    quiet: bool = True,
) -> Generator[Running]:
    """Run a server, whose home and temporary files are in `folder`, until the block ends.

    Its output goes to a log file there; its standard error does too if `quiet`, else to this process's.
    """
    mark = uuid4().hex
    homes = dict.fromkeys(("HOME", "TMPDIR"), str(folder))
    path, started_s = folder / "log", time.monotonic()
    with path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            env={**os.environ, **homes, **environment, _MARK: mark},
            cwd=working_folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT if quiet else None,
            start_new_session=True,  # Ctrl-C reaches only this process, which then stops it
        )
    running = Running(process, mark, path, started_s)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def serve(
    *flags: str, environment: Mapping[str, str] | None = None, quiet: bool = False, program: str = "server"
) -> Generator[Serving]:
    """Run this project's server on a free port until the block ends, configured by `SERVER_...` in the environment.

    `program` may be another module with the same command line.

    Raises:
        StartError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="loadtest-", ignore_cleanup_errors=True) as name:
        ready_file = Path(name) / "ready.json"
        command = [sys.executable, "-m", program, "--port", "0", "--ready-file", str(ready_file), *flags]
        own = {"HOME": str(Path.home()), "TMPDIR": tempfile.gettempdir()}  # runtimes cache compiled code there
        with start(command, own | dict(environment or {}), Path(name), Path.cwd(), quiet=quiet) as running:
            while not ready_file.exists():  # without a time limit: compiling may take minutes
                if running.has_ended:
                    raise StartError(f"the server did not start{_reason(running.log_tail())}")
                time.sleep(POLL_S)
            yield Serving(running, ready_file)


def _reason(log_tail: str) -> str:
    return f":\n{log_tail}" if log_tail else ", as it said above"  # without `quiet` it prints to the terminal


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and its descendants."""
    return [process, *process.children(recursive=True)]


def pss_bytes(members: Iterable[psutil.Process]) -> int:
    """Proportional set sizes added up: a page that n processes share counts 1/n for each.

    Only Linux reports them; elsewhere shared pages do not count.
    """
    total = 0
    for member in members:
        with suppress(psutil.Error):
            memory = member.memory_full_info()
            total += int(getattr(memory, "pss", memory.uss))
    return total
