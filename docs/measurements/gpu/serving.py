"""A server to measure: the role of each of its processes, and how its readiness changes."""

import http.client
import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

PATIENCE_S = 90.0
"""For an engine to start: it loads CUDA and records a graph for each batch size."""
REHEARSAL_PATIENCE_S = 400.0
"""The same on a few CPUs, which other programs may use, too."""
STOP_S = 20.0


@dataclass(slots=True)
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    """Its log so far."""
    patience_s: float = PATIENCE_S
    url: str = ""
    has_ended: bool = False
    """The server has ended, and so has its log."""
    _heard: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, pattern: str, start: int = 0) -> str:
        """Wait for a line of the log that matches, from line `start`; returns the first group.

        Raises:
            RuntimeError: the server ends, or no line matches in time; with the end of the log.
        """

        def find() -> str | None:
            return next((found[1] for line in self.lines[start:] if (found := re.search(pattern, line))), None)

        with self._heard:
            self._heard.wait_for(lambda: find() is not None or self.has_ended, self.patience_s)
            found = find()
        if found is None:
            raise RuntimeError("\n".join([f"the server never said {pattern!r}:", *self.lines[-20:]]))
        return found

    def pids(self) -> dict[int, str]:
        """Return the role of each process that is ready: supervisor, engine or http."""
        found = {self.process.pid: "supervisor"}
        for line in list(self.lines):
            if match := re.search(r"(\w+)(-\d+)? is ready, process (\d+)", line):
                found[int(match[3])] = match[1]
        return found

    def engine(self) -> int:
        """Return the process id of the newest engine."""
        return [pid for pid, role in self.pids().items() if role == "engine"][-1]

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU time so far, by role."""
        total: dict[str, float] = {}
        for pid, role in self.pids().items():
            with suppress(psutil.NoSuchProcess):
                times = psutil.Process(pid).cpu_times()
                total[role] = total.get(role, 0.0) + times.user + times.system
        return total

    def hear(self) -> None:
        """Collect the log; returns when the server has ended."""
        for line in self.process.stderr or ():
            print(line, end="", flush=True)
            with self._heard:
                self.lines.append(line.rstrip())
                self._heard.notify_all()
        with self._heard:
            self.has_ended = True
            self._heard.notify_all()


@contextmanager
def serving(
    repository: Path,
    flags: Mapping[str, object],
    environment: Mapping[str, str] | None = None,
    *,
    patience_s: float = PATIENCE_S,
) -> Generator[Server]:
    """Run a server of a repository on a free port while open; `{"max_batch": 1}` stands for its flag `--max-batch 1`.

    Raises:
        RuntimeError: the server does not start; with its log.
    """
    command = [sys.executable, "-m", "server", "--port", "0", "--repository", str(repository)]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(  # noqa: S603
        command, env={**os.environ, **(environment or {})}, stderr=subprocess.PIPE, text=True
    )
    server = Server(process, patience_s=patience_s)
    reader = threading.Thread(target=server.hear, daemon=True)
    reader.start()
    try:
        server.url = server.wait_for(r"ready on (http://\S+)")
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        process.wait()
        reader.join(STOP_S)
        if process.stderr and not reader.is_alive():
            process.stderr.close()


@dataclass(slots=True)
class Readiness:
    """The statuses of `/readyz`, without repetitions."""

    seen: list[int] = field(default_factory=list)


@contextmanager
def watched(url: str, every_s: float = 0.005) -> Generator[Readiness]:
    """Ask `/readyz` again and again while open; a missing answer is no change."""
    parts, readiness, end = urlsplit(url), Readiness(), threading.Event()

    def look() -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
        while True:
            last = end.is_set()  # what is seen last is how it was at the end
            try:
                connection.request("GET", "/readyz")
                answer = connection.getresponse()
                answer.read()
                if readiness.seen[-1:] != [answer.status]:
                    readiness.seen.append(answer.status)
            except (OSError, http.client.HTTPException):
                connection.close()
            if last:
                return connection.close()
            end.wait(every_s)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield readiness
    finally:
        end.set()
        thread.join()
