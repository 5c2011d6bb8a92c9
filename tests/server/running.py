"""A real `python -m server` in processes of its own, and what tests do to it."""

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
"""Far longer than anything takes here: only a failure waits for it."""


def red_image(red: int) -> bytes:
    """An image that `tests.tiny` puts into class `red`: PNG, so that the red value arrives exactly."""
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
        TimeoutError: it never does.
    """
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"never: {condition}")
        time.sleep(0.01)


def run_server(*arguments: object) -> tuple[int, str]:
    """Exit code and standard error of a server that does not start."""
    command = [sys.executable, "-m", "server", *map(str, arguments)]
    with TemporaryDirectory() as folder:  # its own: in another it says what killed servers of other tests have left
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
    """Exit code and log of a server whose engine dies whenever it starts."""
    return run_changed(folder, _WITHOUT_ENGINE, **environment)


def run_changed(folder: Path, program: str, *flags: str, **environment: str) -> tuple[int, str]:
    """Exit code and log of a server that does not start, in whose processes `program` has been run."""
    tiny.write(folder / "repository")
    script = folder / "script.py"
    script.write_text(program + _MAIN)
    command: list[str | Path] = [sys.executable, script, "--repository", folder / "repository", "--port", "0", *flags]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stderr


def run_with_metrics(directory: Path, program: str) -> str:
    """What a process of its own prints that keeps its metrics in `directory`."""
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
    """Bytes that wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


class RunningServer:
    """Starts on a free port with one HTTP worker; flags are the server's own, `max_batch=1` for `--max-batch 1`."""

    program = "server"
    """What `python -m` runs."""
    waits = True
    """until it is ready, when it is made"""

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
        """Return when it can classify; its log is in the error where it never can."""
        with suppress(TimeoutError):
            until(lambda: self._ready_file.exists() or not self._reader.is_alive())
        if not self._ready_file.exists():
            raise AssertionError("\n".join(["it is not ready:", *self.lines]))
        self.url: str = self._ready()["url"]
        trust = ssl.create_default_context(cafile=str(self._certificate)) if self._certificate else True
        self.client = self._held.enter_context(httpx.Client(base_url=self.url, timeout=PATIENCE_S, verify=trust))

    def environment(self) -> Mapping[str, str]:
        """Of its processes."""
        return os.environ

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._held:  # which ends whatever is left
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
        """The first match in the log, from line `start`; the log is in the error where there is none in time."""

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
        """Until the block ends nobody reads the log, and its pipe is full."""
        assert self.process.stderr
        pipe = self.process.stderr.fileno()
        end = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            with self._heard:
                os.write(end, b"nobody reads what follows\n")
                until(lambda: not _readable(pipe))  # the reader has that, and can go on no more
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
        """Where it was started with `grpc_port`."""
        address: str = self._ready()["grpc"]
        return address

    @property
    def engines(self) -> list[str]:
        """Names of those that are ready: "engine", or "engine-0" and so on where there are several."""
        return sorted(name for name in self._ready()["processes"] if name.startswith("engine"))

    def pid(self, name: str) -> int:
        """Process id of the child of that name, "engine" or "http-0", once one is ready."""
        return self._successor(name, None)

    def _successor(self, name: str, old: int | None) -> int:
        """Once another child of that name is ready than `old`."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for child, pid in self._ready()["processes"].items() if child == name and pid != old]
            return bool(found)

        until(look)
        return found[0]

    def kill_child(self, name: str) -> None:
        """SIGKILL, and wait until its successor is ready."""
        old = self.pid(name)
        os.kill(old, signal.SIGKILL)
        self._successor(name, old)

    def terminate(self) -> int:
        """SIGTERM; the exit code once it has ended."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL of the supervisor, which all its children must notice."""
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
        """Every image once, from that many clients at a time; the answers in the images' order."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(self.classify, images))

    def batches(self) -> float:
        """That have started so far."""
        return self.metric("serving_batch_size_count")

    def pending(self) -> float:
        """Images that have a slot now."""
        return self.metric("serving_pending_requests")

    def post_and_keep_open(self, image: bytes, **fields: str) -> socket.socket:
        """Send a whole request, and read nothing."""
        address = urlsplit(self.url)
        fields = {"Host": address.netloc, "Content-Length": str(len(image)), **fields}
        head = "\r\n".join(["POST /classify HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())])
        connection = socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S)
        connection.sendall(f"{head}\r\n\r\n".encode() + image)
        return connection

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with those labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if re.fullmatch(rf"{name}(\{{.*\}})?", sample) and all(f'{k}="{v}"' in sample for k, v in labels.items()):
                total += float(value)
        return total


class Gates:
    """Keeps images from running, by their class or the model, in a server that is `gated`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def hold(self, *reds: int | str) -> Generator[Callable[[], None]]:
        """Hold batches with or of these, or `gated.REPOSITORY`, until the block ends, or what it is given is called.

        Those of warm-ups have 0.
        """
        with ExitStack() as held:
            for red in reds:
                gate = held.enter_context((self.folder / str(red)).open("x"))
                held.callback(os.unlink, gate.name)
                fcntl.flock(gate, fcntl.LOCK_EX)
            yield held.close


class GatedServer(RunningServer):
    """Does not run what the test holds: what must be slow takes as long as the test wants, on any machine."""

    program = "tests.server.gated"

    def __init__(self, repository: Path, *, gates: Gates | None = None, **flags: object) -> None:
        self._gates = gates
        super().__init__(repository, **flags)

    def environment(self) -> Mapping[str, str]:
        self._gates = self._gates or Gates(self._folder)
        return {**os.environ, "GATES": str(self._gates.folder)}

    def hold(self, *reds: int | str) -> AbstractContextManager[Callable[[], None]]:
        """As `Gates.hold` does."""
        assert self._gates
        return self._gates.hold(*reds)
