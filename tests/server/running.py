"""A real `python -m server` in processes of its own, and what tests do to it."""

import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil
from PIL import Image

from tests import tiny

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
"""Far longer than anything takes here: only a failure waits for it."""


def red_image(red: int) -> bytes:
    """An image that `tests.tiny` puts into class `red`: PNG, so that the red value arrives exactly."""
    stream = BytesIO()
    Image.new("RGB", (32, 32), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds.

    Raises:
        TimeoutError: it never does.
    """
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"never: {condition}")
        time.sleep(0.01)


_WITHOUT_ENGINE = """
import sys
from server import __main__
from server.engine import process

def main(*_):
    raise RuntimeError("no engine today")

process.main = main
if __name__ == "__main__":
    sys.exit(__main__.main())
"""


def run_without_engine(folder: Path, **environment: str) -> tuple[int, str]:
    """Exit code and log of a server whose engine dies whenever it starts."""
    tiny.write(folder / "repository")
    script = folder / "script.py"
    script.write_text(_WITHOUT_ENGINE)
    command: list[str | Path] = [sys.executable, script, "--repository", folder / "repository", "--port", "0"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stderr


class RunningServer:
    """Starts on a free port with one HTTP worker; flags are the server's own, `max_batch=1` for `--max-batch 1`."""

    def __init__(self, repository: Path, **flags: object) -> None:
        command = [sys.executable, "-m", "server", "--port", "0", "--repository", str(repository)]
        for name, value in {"http_workers": 1, **flags}.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for_line(r"ready on (https?://[^\s\"]+)")[1]
        certificate = flags.get("tls_certificate")
        trust = ssl.create_default_context(cafile=str(certificate)) if certificate else True
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S, verify=trust)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self.kill()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._heard:
                self.lines.append(line.rstrip())
                self._heard.notify_all()
        with self._heard:
            self.lines.append("(the server has ended)")
            self._heard.notify_all()

    def wait_for_line(self, pattern: str, start: int = 0) -> re.Match[str]:
        """The first match in the log, from line `start`; the log is in the error where there is none in time."""

        def find() -> re.Match[str] | None:
            return next((found for line in self.lines[start:] if (found := re.search(pattern, line))), None)

        with self._heard:
            self._heard.wait_for(lambda: find() or "(the server has ended)" in self.lines, PATIENCE_S)
            found = find()
        if not found:
            raise AssertionError("\n".join([f"no line matches {pattern!r}:", *self.lines]))
        return found

    @property
    def grpc_address(self) -> str:
        """Where it was started with `grpc_port`."""
        return self.wait_for_line(r"gRPC on (\S+)")[1]

    def pid(self, name: str) -> int:
        """Process id of the newest child of that name: "engine", "http-0"."""
        pids = [match[1] for line in self.lines if (match := re.search(rf"{name} is ready, process (\d+)", line))]
        return int(pids[-1])

    def kill_child(self, name: str) -> None:
        """SIGKILL, and wait until its successor is ready."""
        start = len(self.lines)
        os.kill(self.pid(name), signal.SIGKILL)
        self.wait_for_line(rf"{name} is ready", start)

    def terminate(self) -> int:
        """SIGTERM; the exit code once it has ended."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """End it at once, however it is."""
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE_S)
        assert not self._reader.is_alive(), "a child of the server outlives it"
        assert self.process.stderr
        self.process.stderr.close()

    def tree(self) -> list[psutil.Process]:
        """The supervisor and all its descendants."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def classify(self, image: bytes, **parameters: Any) -> httpx.Response:
        return self.client.post("/classify", content=image, params=parameters)

    def classify_all(self, images: list[bytes], clients: int) -> list[httpx.Response]:
        """Every image once, from that many clients at a time; the answers in the images' order."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(self.classify, images))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with those labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if re.fullmatch(rf"{name}(\{{.*\}})?", sample) and all(f'{k}="{v}"' in sample for k, v in labels.items()):
                total += float(value)
        return total
