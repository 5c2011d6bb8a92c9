"""The supervisor: starts the engine and the HTTP workers, watches them, restarts what dies, and drains on SIGTERM."""

import contextlib
import logging
import math
import multiprocessing
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from server import metrics
from server.control import Draining, EngineDown, EngineReady, EngineUp, Finish, WorkerReady
from server.engine import process as engine_process
from server.engine.slots import Slots
from server.http import worker as http_worker
from server.metrics import Metrics
from server.repository import Catalogue
from server.settings import Settings

HEALTHY_S = 10.0
"""An engine that has been ready for this long has recovered: its next crash counts as the first again."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
"""Wait before the second restart in a row, and the most that doubling it comes to. The first restart is at once."""
MAX_RECOVERIES = 5
"""After more crashes in a row than this, requests no longer wait for the engine."""
CHECK_S = 1.0
"""How often the clock is looked at where nothing else happens."""
STOP_S = 5.0
"""What a process is given to end by itself."""
BACKLOG = 2048

SPAWN = multiprocessing.get_context("spawn")
log = logging.getLogger(__name__)


class StartupError(Exception):
    """The server cannot start; the message says why and what to do."""


@dataclass(slots=True)
class _Child:
    process: SpawnProcess
    control: Connection
    heard_s: float
    ready_s: float = math.inf

    @classmethod
    def start(cls, name: str, target: Callable[..., None], *args: object) -> "_Child":
        """Run `target(*args, pipe)` in a process of its own."""
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=target, args=(*args, theirs), name=name, daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours, time.monotonic())

    def tell(self, message: object) -> None:
        with contextlib.suppress(OSError):  # it has died; its sentinel says so too
            self.control.send(message)

    def hear(self) -> object | None:
        """One message; None where there is none."""
        with contextlib.suppress(OSError, EOFError):
            if self.control.poll():
                message: object = self.control.recv()
                self.heard_s = time.monotonic()
                return message
        return None

    def stop(self) -> None:
        """Close the pipe, which asks it to end; kill it if it does not."""
        self.control.close()
        self.process.join(STOP_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Supervisor:
    """Owns what outlives any child: the listening sockets, the shared-memory slots, the run folder."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        """Take the port.

        Raises:
            StartupError: it cannot be had.
        """
        self._settings = settings
        self._catalogue = catalogue
        self._listeners = _listen(settings.host, settings.port, settings.http_workers)
        self._folder = Path(tempfile.mkdtemp(prefix="resnet-serving-"))
        metrics.use_directory(self._folder)
        self._metrics = Metrics("supervisor")
        self._slots = Slots(
            settings.slots_per_worker * settings.http_workers,
            max(math.prod(found.input_shape) for found in catalogue.manifests.values()),
        )
        self._workers: dict[int, _Child] = {}
        self._engine: _Child | None = None
        self._engine_up: EngineUp | None = None
        self._engine_starts = 0
        self._crashes = 0  # in a row
        self._restart_s = 0.0
        self._announced = False
        self._finish_s = math.inf  # when to stop accepting
        self._give_up_s = math.inf  # when to stop waiting for what was accepted

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once.

        Raises:
            StartupError: no model can be loaded.
        """
        try:
            with _signals() as signals:
                for index in range(self._settings.http_workers):
                    self._start_worker(index)
                while self._workers:
                    if self._engine is None and time.monotonic() >= self._restart_s:
                        self._start_engine()
                    self._turn(signals)
        finally:
            self._close()

    def _turn(self, signals: socket.socket) -> None:
        """Wait until something happens, and react to it."""
        children = self._children()
        happened = wait(
            [signals, *(child.control for child in children), *(child.process.sentinel for child in children)],
            self._patience_s(),
        )
        if signals in happened:
            for _ in signals.recv(64):
                self._on_signal()
        for child in children:
            if child.control in happened:
                self._on_message(child, child.hear())
        for index, worker in list(self._workers.items()):
            if worker.process.sentinel in happened:
                self._on_worker_end(index, worker)
        if self._engine and self._engine.process.sentinel in happened:
            self._on_engine_end(self._engine)
        self._check_clock()

    def _patience_s(self) -> float:
        """Until the next thing that is due by the clock."""
        now_s = time.monotonic()
        restart_s = self._restart_s if self._engine is None else math.inf
        finish_s = self._finish_s if self._give_up_s == math.inf else math.inf
        return max(0.0, min(CHECK_S, restart_s - now_s, finish_s - now_s))

    def _check_clock(self) -> None:
        now_s = time.monotonic()
        if self._engine and now_s - self._engine.ready_s > HEALTHY_S:
            self._crashes = 0
        stalled_s = now_s - self._engine.heard_s if self._engine and self._engine.ready_s < math.inf else 0.0
        if self._engine and stalled_s > self._settings.stall_timeout_ms / 1e3:
            log.error("the engine has shown no progress for %.0f s: it is killed", stalled_s)
            self._engine.process.kill()
        if now_s >= self._finish_s and self._give_up_s == math.inf:
            self._finish(now_s)
        if now_s >= self._give_up_s:
            log.error("requests did not finish in time: stopping without them")
            self._workers.clear()

    def _on_signal(self) -> None:
        if self._finish_s < math.inf:
            log.warning("second signal: stopping at once")
            self._give_up_s = 0.0
            return
        log.info("draining: no longer ready, answering what was accepted")
        self._finish_s = time.monotonic() + self._settings.drain_delay_ms / 1e3
        self._tell_workers(Draining())

    def _finish(self, now_s: float) -> None:
        self._give_up_s = now_s + self._settings.drain_timeout_ms / 1e3 + STOP_S
        self._tell_workers(Finish())
        for listener in self._listeners:
            listener.close()

    def _on_message(self, child: _Child, message: object | None) -> None:
        match message:
            case EngineReady(address, refused):
                if not self._announced and len(refused) == len(self._catalogue.manifests):
                    raise StartupError("; ".join(f"{key}: {reason}" for key, reason in refused.items()))
                self._is_ready(child)
                self._engine_up = EngineUp(address, refused)
                self._tell_workers(self._engine_up)
            case WorkerReady():
                self._is_ready(child)
        if not self._announced and self._engine_up and all(w.ready_s < math.inf for w in self._workers.values()):
            self._announced = True
            self._announce(self._engine_up)

    def _is_ready(self, child: _Child) -> None:
        child.ready_s = child.heard_s
        log.info("%s is ready, process %d", child.process.name, child.process.pid)

    def _announce(self, engine: EngineUp) -> None:
        catalogue = self._catalogue.refuse(engine.refused)
        for key, found in catalogue.manifests.items():
            default = " (default)" if key.name == catalogue.default_model else ""
            warning = ": RANDOM WEIGHTS, its answers mean nothing" if found.weights.random else ""
            log.info("serving %s%s%s", key, default, warning)
        for what, reason in catalogue.refused.items():
            log.warning("not serving %s: %s", what, reason)
        host, port = self._listeners[0].getsockname()[:2]
        log.info("ready on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def _start_worker(self, index: int) -> None:
        worker = _Child.start(
            f"http-{index}",
            http_worker.main,
            index,
            self._settings,
            self._catalogue,
            self._slots,
            self._listeners[index],
        )
        self._workers[index] = worker
        if self._engine_up:
            worker.tell(self._engine_up)
        if self._finish_s < math.inf:
            worker.tell(Draining())

    def _on_worker_end(self, index: int, worker: _Child) -> None:
        del self._workers[index]
        worker.stop()
        if self._give_up_s < math.inf:
            return
        log.error("%s ended with exit code %s: restarting it", worker.process.name, worker.process.exitcode)
        self._metrics.restarts.labels("http").inc()
        self._start_worker(index)

    def _start_engine(self) -> None:
        self._engine_starts += 1
        address = f"ipc://{self._folder}/engine-{self._engine_starts}"
        self._engine = _Child.start(
            "engine", engine_process.main, self._settings, self._catalogue, self._slots, address
        )

    def _on_engine_end(self, engine: _Child) -> None:
        """Have the requests wait for a new engine, unless this one never was ready or crashes follow each other."""
        engine.stop()
        (self._folder / f"engine-{self._engine_starts}").unlink(missing_ok=True)
        self._engine, self._engine_up = None, None
        self._crashes += 1
        delay_s = 0.0 if self._crashes == 1 else min(FIRST_DELAY_S * 2.0 ** (self._crashes - 2), LONGEST_DELAY_S)
        self._restart_s = time.monotonic() + delay_s
        log.error("the engine ended with exit code %s: restart in %g s", engine.process.exitcode, delay_s)
        self._metrics.restarts.labels("engine").inc()
        recovering = engine.ready_s < math.inf and self._crashes <= MAX_RECOVERIES
        self._tell_workers(EngineDown(recovering))

    def _children(self) -> list[_Child]:
        return [*self._workers.values(), *([self._engine] if self._engine else [])]

    def _tell_workers(self, message: object) -> None:
        for worker in self._workers.values():
            worker.tell(message)

    def _close(self) -> None:
        for child in self._children():
            child.stop()  # closes its pipe: it ends by itself
        for listener in self._listeners:
            listener.close()
        self._slots.unlink()
        shutil.rmtree(self._folder, ignore_errors=True)
        log.info("stopped")


def _listen(host: str, port: int, count: int) -> list[socket.socket]:
    """One listening socket for each HTTP worker, all on one port; the kernel spreads connections over them.

    The supervisor keeps them open: connections that arrive while a worker is restarted wait for it.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # Alone first: SO_REUSEPORT would let a second server of the same user share the port without a word.
        alone = socket.create_server((host, port), family=family)
        port = alone.getsockname()[1]
        alone.close()
        return [
            socket.create_server((host, port), family=family, reuse_port=True, backlog=BACKLOG) for _ in range(count)
        ]
    except OSError as error:
        raise StartupError(f"cannot listen on {host} port {port}: {error.strerror}; choose another --port") from error


@contextlib.contextmanager
def _signals() -> Generator[socket.socket]:
    """A socket that has a byte to read for each SIGTERM or SIGINT."""
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.settimeout(0)
        signal.set_wakeup_fd(writer.fileno())
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
