"""Runs a real `python -m server` and gives tests control over it."""

import fcntl
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import psutil
from PIL import Image

from tests import processes, tiny

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
"""Far longer than anything takes here: only a failing test waits this long."""


def red_image(red: int) -> bytes:
    """An image that the model of `tests.tiny` puts into class `red`: PNG, so that the red value arrives exactly."""
    stream = BytesIO()
    Image.new("RGB", (32, 32), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def top1(response: httpx.Response) -> int:
    """The best class of an answer."""
    assert response.status_code == 200, response.text
    class_id: int = response.json()["predictions"][0]["class_id"]
    return class_id


def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds.

    Raises:
        TimeoutError: it does not within PATIENCE_S.
    """
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"never: {condition}")
        time.sleep(0.01)


def run_server(*arguments: object) -> tuple[int, str]:
    """Run a server that does not start; returns its exit code and standard error."""
    command = [sys.executable, "-m", "server", *map(str, arguments)]
    with TemporaryDirectory() as folder:  # else it reports what killed servers of other tests left behind
        variables = {"TMPDIR": folder, **os.environ}
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stderr.strip()


_WITHOUT_ENGINE = """
from server.engine import process

def main(*_):
    raise RuntimeError("no engine today")

process.main = main
"""
_MAIN = """
import sys
from server import __main__

if __name__ == "__main__":
    sys.exit(__main__.main())
"""


def run_without_engine(folder: Path, **environment: str) -> tuple[int, str]:
    """Run a server whose engine dies at every start; returns its exit code and log."""
    return run_changed(folder, _WITHOUT_ENGINE, **environment)


def run_changed(folder: Path, program: str, *flags: str, **environment: str) -> tuple[int, str]:
    """Run a server that does not start, with `program` run first in each process; returns its exit code and log."""
    tiny.write(folder / "repository")
    script = folder / "script.py"
    script.write_text(program + _MAIN)
    command: list[str | Path] = [sys.executable, script, "--repository", folder / "repository", "--port", "0", *flags]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stderr


def run_with_metrics(directory: Path, program: str) -> str:
    """Run `program` in another process, which keeps its metrics in `directory`; returns what it prints."""
    imports = "from server.exposition import exposition; from server.metrics import Metrics"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}\n{program}"],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _readable(descriptor: int) -> int:
    """Number of unread bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


class RunningServer:
    """A server on a free port with one HTTP worker; `flags` are the server's, `max_batch=1` for `--max-batch 1`."""

    program = "server"
    """The module that `python -m` runs."""
    waits = True
    """whether the constructor waits until the server is ready"""

    def __init__(self, repository: Path, **flags: object) -> None:
        self._held = ExitStack()
        self.lines: list[str] = []
        self._heard = threading.Condition()
        try:
            self._start(repository, flags)
            if self.waits:
                self.wait_until_ready()
        except BaseException:
            self._held.close()
            raise

    def _start(self, repository: Path, flags: Mapping[str, object]) -> None:
        self._folder = Path(self._held.enter_context(tempfile.TemporaryDirectory()))
        self._ready_file = Path(str(flags.get("ready_file", self._folder / "ready.json")))
        self._certificate = flags.get("tls_certificate")
        given = {"port": 0, "repository": repository, "http_workers": 1, **flags, "ready_file": self._ready_file}
        command = [sys.executable, "-m", self.program]
        for name, value in given.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        self.process: subprocess.Popen[str] = self._held.enter_context(
            processes.started(command, cwd=ROOT, env=self.environment(), stderr=subprocess.PIPE, text=True)
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """Return when the server can classify; if it never can, the error holds its log."""
        with suppress(TimeoutError):
            until(lambda: self._ready_file.exists() or not self._reader.is_alive())
        if not self._ready_file.exists():
            raise AssertionError("\n".join(["it is not ready:", *self.lines]))
        self.url: str = self._ready()["url"]
        trust = ssl.create_default_context(cafile=str(self._certificate)) if self._certificate else True
        self.client = self._held.enter_context(httpx.Client(base_url=self.url, timeout=PATIENCE_S, verify=trust))

    def environment(self) -> Mapping[str, str]:
        """Environment of the server's processes."""
        return os.environ

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._held:  # ends whatever is left
            if error is None:
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
        """The first match in the log, from line `start`; if none comes in time, the error holds the log."""

        def find() -> re.Match[str] | None:
            return next((found for line in self.lines[start:] if (found := re.search(pattern, line))), None)

        with self._heard:
            self._heard.wait_for(lambda: find() or "(the server has ended)" in self.lines, PATIENCE_S)
            found = find()
        if not found:
            raise AssertionError("\n".join([f"no line matches {pattern!r}:", *self.lines]))
        return found

    @contextmanager
    def log_unread(self) -> Generator[None]:
        """Stop reading the log and keep its pipe full until the block ends."""
        assert self.process.stderr
        pipe = self.process.stderr.fileno()
        end = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            with self._heard:
                os.write(end, b"nobody reads what follows\n")
                until(lambda: not _readable(pipe))  # the reader has taken that line, and is now blocked
                with suppress(BlockingIOError):
                    while True:
                        os.write(end, b"\n")
                yield
        finally:
            os.close(end)

    def _ready(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._ready_file.read_bytes())
        return found

    @property
    def grpc_address(self) -> str:
        """Address of the gRPC port, if the server was started with `grpc_port`."""
        address: str = self._ready()["grpc"]
        return address

    @property
    def engines(self) -> list[str]:
        """Names of the ready engines: "engine", or "engine-0" and so on if there are several."""
        return sorted(name for name in self._ready()["processes"] if name.startswith("engine"))

    def pid(self, name: str) -> int:
        """Wait for a ready child of that name, "engine" or "http-0"; returns its process id."""
        return self._successor(name, None)

    def _successor(self, name: str, old: int | None) -> int:
        """Wait for a ready child of that name other than `old`; returns its process id."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for child, pid in self._ready()["processes"].items() if child == name and pid != old]
            return bool(found)

        until(look)
        return found[0]

    def kill_child(self, name: str) -> None:
        """Send SIGKILL to a child and wait until its successor is ready."""
        old = self.pid(name)
        os.kill(old, signal.SIGKILL)
        self._successor(name, old)

    def terminate(self) -> int:
        """Send SIGTERM and wait for the server to end; returns its exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """Send SIGKILL to the supervisor, and check that all its children notice and end."""
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE_S)
        assert not self._reader.is_alive(), "a child of the server outlives it"

    def tree(self) -> list[psutil.Process]:
        """The supervisor and all its descendants."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def classify(self, image: bytes, **parameters: Any) -> httpx.Response:
        return self.client.post("/classify", content=image, params=parameters)

    def classify_all(self, images: list[bytes], clients: int) -> list[httpx.Response]:
        """Send every image once, from that many concurrent clients; returns the answers in the images' order."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(self.classify, images))

    def batches(self) -> float:
        """Number of batches started so far."""
        return self.metric("serving_batch_size_count")

    def pending(self) -> float:
        """Number of images that hold a slot now."""
        return self.metric("serving_pending_requests")

    def post_and_keep_open(self, image: bytes, **fields: str) -> socket.socket:
        """Send a whole request without reading the response."""
        address = urlsplit(self.url)
        fields = {"Host": address.netloc, "Content-Length": str(len(image)), **fields}
        head = "\r\n".join(["POST /classify HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())])
        connection = socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S)
        connection.sendall(f"{head}\r\n\r\n".encode() + image)
        return connection

    def metric(self, name: str, **labels: str) -> float:
        """Sum of all samples of that name with those labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if re.fullmatch(rf"{name}(\{{.*\}})?", sample) and all(f'{k}="{v}"' in sample for k, v in labels.items()):
                total += float(value)
        return total


class Gates:
    """Holds back batches in a `GatedServer`, by the class of an image or by the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def hold(self, *reds: int | str) -> Generator[Callable[[], None]]:
        """Hold batches with these classes or of these models, or `gated.REPOSITORY`, until the block ends.

        Calling the yielded function releases them earlier. Warm-up images have class 0.
        """
        with ExitStack() as held:
            for red in reds:
                gate = held.enter_context((self.folder / str(red)).open("x"))
                held.callback(os.unlink, gate.name)
                fcntl.flock(gate, fcntl.LOCK_EX)
            yield held.close


class GatedServer(RunningServer):
    """A server whose batches a test can hold for as long as it wants, on any machine; one at a time unless it says."""

    program = "tests.server.gated"

    def __init__(self, repository: Path, *, gates: Gates | None = None, **flags: object) -> None:
        self._gates = gates
        super().__init__(repository, **{"instances": 1} | flags)

    def environment(self) -> Mapping[str, str]:
        self._gates = self._gates or Gates(self._folder)
        return {**os.environ, "GATES": str(self._gates.folder)}

    def hold(self, *reds: int | str) -> AbstractContextManager[Callable[[], None]]:
        """As `Gates.hold` does."""
        assert self._gates
        return self._gates.hold(*reds)
