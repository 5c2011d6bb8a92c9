"""The supervisor: starts the engine and the HTTP workers, watches them, restarts what dies, and drains on SIGTERM."""

import contextlib
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Set
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path

from models.manifest import ManifestError
from server import gpus, keys, metrics, repository, tls
from server.child import ENGINE, STOP_S, STOP_SIGNALS, WORKER, Child, keep_socket_in
from server.control import (
    Authorise,
    Change,
    Changed,
    Connected,
    Draining,
    EngineDown,
    EngineReady,
    EngineUp,
    Finish,
    Load,
    Loaded,
    Renew,
    Serve,
    Serving,
    Settled,
    Start,
    Unload,
    WorkerReady,
)
from server.engine.slots import Slots
from server.errors import Code, ServiceError
from server.images import jpeg
from server.keys import KeysError
from server.metrics import Metrics
from server.ready_file import ReadyFile
from server.repository import Catalogue
from server.rollout import Rollout
from server.run_folder import RunFolder
from server.settings import Settings
from server.tls import TlsError
from server.watched import Watched

HEALTHY_S = 10.0
"""A process that has been ready for this long has recovered: its next crash counts as the first again."""
FIRST_DELAY_S = 0.5
"""Wait before the second restart in a row; it doubles with each. The first restart is at once."""
ENGINE_DELAY_S, WORKER_DELAY_S = 30.0, 1.0
"""The most that it comes to. An engine has models to load; an HTTP worker costs little, and while it is away the kernel
goes on giving it its share of the connections."""
MAX_RECOVERIES = 5
"""After more crashes of the engine in a row than this, requests no longer wait for it."""
CHECK_S = 1.0
"""How often the clock is looked at where nothing else happens."""
AWAY_S = 2.0
"""Who has not looked at it for so long has not been running."""
BACKLOG = 2048
MAX_FAILED_STARTS = 3
"""A process that dies so often before the server is ready for the first time never will be."""

log = logging.getLogger(__name__)


class StartupError(Exception):
    """The server cannot start; the message says why and what to do."""


@dataclass(slots=True)
class _Role:
    """A process that must always be there, and how often it has failed to."""

    name: str
    start: Callable[[str], Child]
    longest_delay_s: float
    child: Child | None = None
    crashes: int = 0  # in a row
    restart_s: float = 0.0

    def ended(self, child: Child) -> None:
        """Plan its successor's start."""
        child.stop()
        self.child = None
        if time.monotonic() - child.ready_s > HEALTHY_S:
            self.crashes = 0
        self.failed(f"ended with exit code {child.process.exitcode}")

    def failed(self, how: str) -> None:
        """Plan the next start: at once, or after a wait that doubles with each failure in a row."""
        self.crashes += 1
        delay_s = 0.0 if self.crashes == 1 else min(FIRST_DELAY_S * 2.0 ** (self.crashes - 2), self.longest_delay_s)
        self.restart_s = time.monotonic() + delay_s
        log.error("%s %s: restart in %g s", self.name, how, delay_s)


class Supervisor:
    """Owns what outlives any child: the listening sockets, the shared-memory slots, the run folder."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        """Take the port.

        Raises:
            StartupError: it cannot be had, or the certificate or the API keys cannot be used.
        """
        try:
            self._keys = Watched(keys.read, settings.api_keys) if settings.api_keys else None
            self._certificate = (
                Watched(tls.read, settings.tls_certificate, settings.tls_key)
                if settings.tls_certificate and settings.tls_key
                else None
            )
        except (KeysError, TlsError) as error:
            raise StartupError(str(error)) from error
        self._reserved: socket.socket | None = None
        if settings.grpc_port is not None:
            self._reserved = _reserve(settings.host, settings.grpc_port)
            settings = settings.model_copy(update={"grpc_port": self._reserved.getsockname()[1]})
        if settings.otlp_endpoint:
            from server.http import tracing  # with FastAPI, which nothing else here needs

            if not tracing.is_installed():
                raise StartupError("tracing is not installed: pip install '.[tracing]', or leave --otlp-endpoint out")
        if refused := jpeg.why_not(settings):
            raise StartupError(refused)
        try:
            self._ready_file = ReadyFile(settings.ready_file) if settings.ready_file else None
        except OSError as error:
            raise StartupError(f"--ready-file {settings.ready_file}: {error.strerror}") from error
        self._settings = settings
        self._rollout = Rollout(catalogue, settings.default_model)
        self._asked: dict[str, None] = {}  # names of models that were loaded on request
        self._seen = repository.signature(settings.repository)
        self._look_s = time.monotonic() + settings.reload_ms / 1e3 if settings.reload_ms else math.inf
        self._told = Serve(catalogue, 0)
        self._changes: list[tuple[Child, Change]] = []
        self._listeners = _listen(settings.host, settings.port, settings.http_workers)
        self._host, self._port = self._listeners[0].getsockname()[:2]
        self._run_folder = RunFolder()
        self._folder = self._run_folder.path
        self._usage = keys.usage_table(self._folder, settings.http_workers) if self._keys else None
        self._keep_usage()
        keep_socket_in(self._folder)
        workers = [f"http-{n}" for n in range(settings.http_workers)]
        try:
            metrics.use_directory(self._folder, ["supervisor", "engine", *workers])
        except OSError as error:
            self._run_folder.remove()
            raise StartupError(f"no room for metrics in {self._folder.parent}: {error.strerror}; set TMPDIR") from error
        self._metrics = Metrics("supervisor")
        for process in ("http", "engine"):
            self._metrics.restarts.labels(process).inc(0)  # to be seen before the first
        try:
            self._slots = Slots(
                settings.slots_per_worker * settings.http_workers,
                max(math.prod(model.manifest.input_shape) for model in catalogue.models.values()),
            )
        except OSError as error:
            self._run_folder.remove()
            detail = f"shared memory for {settings.queue_size} images cannot be had: {error.strerror}"
            raise StartupError(
                f"{detail}; lower --queue-size, or give /dev/shm more room (docker: --shm-size)"
            ) from error
        self._workers = [_Role(name, partial(self._start_worker, n), WORKER_DELAY_S) for n, name in enumerate(workers)]
        self._engine = _Role("engine", self._start_engine, ENGINE_DELAY_S)
        self._engine_starts = 0
        self._engine_up: EngineUp | None = None
        self._recovering = True  # requests wait for the engine
        self._announced = False
        self._checked_s = time.monotonic()
        self._stopped = threading.Event()
        self._finish_s = math.inf  # when to stop accepting
        self._give_up_s = math.inf  # when to stop waiting for what was accepted

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, then drain; a second signal stops at once.

        Raises:
            StartupError: no model can be loaded, or a process cannot even start.
        """
        try:
            with _signals() as signals:
                gpus.watch(self._metrics, self._stopped)
                while not self._drained():
                    self._start_what_is_due()
                    self._turn(signals)
        finally:
            self._close()

    def _drained(self) -> bool:
        return self._finishing and (
            time.monotonic() >= self._give_up_s or not any(role.child for role in self._workers)
        )

    @property
    def _finishing(self) -> bool:
        return self._give_up_s < math.inf

    @property
    def _roles(self) -> list[_Role]:
        """Those whose process must be there; in the end HTTP workers are no longer."""
        return [self._engine] if self._finishing else [*self._workers, self._engine]

    def _start_what_is_due(self) -> None:
        now_s = time.monotonic()
        for role in self._roles:
            if role.child is None and now_s >= role.restart_s:
                try:
                    role.child = role.start(role.name)
                except (OSError, EOFError) as error:
                    if not self._announced:
                        raise StartupError(f"{role.name} cannot be started: {error!r}") from error
                    role.failed(f"cannot be started: {error!r}")
                    if role is self._engine:
                        self._expect_engine(recovering=self._recovering)

    def _start_worker(self, index: int, name: str) -> Child:
        start = Start(
            index,
            self._settings,
            self._told,
            self._slots,
            self._listeners[index],
            self._keys.content if self._keys else None,
            self._certificate.content if self._certificate else None,
            self._folder,
        )
        worker = Child.start(name, self._settings, WORKER, start)
        worker.serving = worker.settled = self._told.generation
        worker.tell(self._engine_up or EngineDown(self._recovering))
        if self._finish_s < math.inf:
            worker.tell(Draining())
        return worker

    def _start_engine(self, name: str) -> Child:
        self._engine_starts += 1
        address = str(self._socket_path())
        models = self._rollout.start_engine()
        settings, folder = self._settings, self._settings.repository
        return Child.start(name, settings, ENGINE, settings, folder, models, self._slots, address)

    def _socket_path(self) -> Path:
        """A path of its own for each engine, so that nothing meant for a dead one reaches its successor."""
        return self._folder / f"engine-{self._engine_starts}"

    def _turn(self, signals: socket.socket) -> None:
        """Wait until something happens, and react to it."""
        children = self._children()
        happened = wait(
            [signals, *(child.control for child in children), *(child.life for child in children)],
            self._patience_s(),
        )
        if signals in happened:
            for _ in signals.recv(64):
                self._on_signal()
        for child in children:
            if child.control in happened:
                self._on_message(child, child.hear())
        for role in self._workers:
            if role.child and role.child.life in happened:
                self._on_worker_end(role, role.child)
        if self._engine.child and self._engine.child.life in happened:
            self._on_engine_end(self._engine.child)
        self._check_clock()

    def _patience_s(self) -> float:
        """Until the next thing that is due by the clock."""
        due_s = [role.restart_s for role in self._roles if role.child is None]
        if not self._finishing:
            due_s.append(self._finish_s)
        return max(0.0, min(CHECK_S, min(due_s, default=math.inf) - time.monotonic()))

    def _check_clock(self) -> None:
        now_s = time.monotonic()
        away_s, self._checked_s = now_s - self._checked_s, now_s
        for child in self._children():
            if away_s > AWAY_S:  # stopped, as all of them, or the machine was: nobody could be heard
                child.heard_s = min(now_s, child.heard_s + away_s)
            silent_s = now_s - child.heard_s
            if silent_s > self._settings.stall_timeout_ms / 1e3:
                log.error("%s has shown no progress for %.0f s: it is killed", child.name, silent_s)
                child.kill()
                child.heard_s = now_s  # it takes a moment to end
        self._look_at_protection()
        if now_s >= self._look_s:
            self._look_s = now_s + self._settings.reload_ms / 1e3
            self._look()
        if now_s >= self._finish_s and not self._finishing:
            self._finish(now_s)
        if now_s >= self._give_up_s:
            log.error("stopping without waiting for what is under way")

    def _on_signal(self) -> None:
        if self._finish_s < math.inf:
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

    def _on_message(self, child: Child, message: object | None) -> None:
        match message:
            case EngineReady(address, refused):
                self._rollout.engine_ready(refused)
                served = self._rollout.served
                if not (self._announced or served.models):
                    reasons = "; ".join(f"{what}: {why}" for what, why in served.refused.items())
                    raise StartupError(reasons or "every model was unloaded before it was served")
                self._is_ready(child)
                self._engine_up = EngineUp(address)
                self._roll_out()
                self._tell_workers(self._engine_up)
            case Loaded(model_id, reason):
                self._rollout.loaded(model_id, reason)
                self._roll_out()
            case Serving(generation):
                child.serving = generation
                self._roll_out()
            case Settled(generation):
                child.settled = max(child.settled, generation)
                self._roll_out()
            case Change() as change:
                self._change(child, change)
            case WorkerReady():
                self._is_ready(child)
            case Connected():
                child.connected = True
        self._announce_once()

    def _look_at_protection(self) -> None:
        """Use new keys and a new certificate. A file that cannot be used is logged, and changes nothing."""
        try:
            if self._keys and self._keys.look():
                log.info("API keys: %s", ", ".join(key.name for key in self._keys.content))
                self._keep_usage()
                self._tell_workers(Authorise(self._keys.content))
        except KeysError as error:
            log.warning("the API keys stay as they were: %s", error)
        try:
            if self._certificate and self._certificate.look():
                log.info("%s is read again", self._settings.tls_certificate)
                self._tell_workers(Renew(self._certificate.content))
        except TlsError as error:
            log.warning("the certificate stays as it was: %s", error)

    def _keep_usage(self) -> None:
        if self._usage and self._keys:
            self._usage.keep([key.sha256 for key in self._keys.content])

    def _look(self) -> None:
        """Serve what the repository holds by now."""
        try:
            folder = self._settings.repository
            seen = repository.signature(folder)
            if seen != self._seen:
                changed = (path for path, status in seen.items() if self._seen.get(path) != status)
                versions = {"/".join(path.relative_to(folder).parts[:2]) for path in changed}
                try:
                    self._scan(changed=versions)
                except ManifestError as error:
                    log.warning("the repository has changed, but cannot be served: %s", error)
                self._seen = seen
        except OSError as error:  # what was listed has gone, or the disk: the next look will tell
            log.warning("the repository cannot be read: %s", error)

    def _scan(self, *more: str, changed: Set[str] = frozenset()) -> None:
        """Take in what the repository holds of the models to serve; of those asked for later, while they are there."""
        folder, names = self._settings.repository, self._settings.models
        if names:
            there = (name for name in (*self._asked, *more) if (folder / name).is_dir())
            names = tuple(dict.fromkeys((*names, *there)))
        self._rollout.scanned(repository.scan(folder, names), changed)
        self._roll_out()

    def _change(self, worker: Child, change: Change) -> None:
        """What an HTTP worker was asked for."""
        try:
            if change.action == "unload":
                self._rollout.unload(change.name)
            else:
                try:
                    self._scan(change.name)
                except (ManifestError, OSError) as error:
                    raise ServiceError(Code.UNKNOWN_MODEL, str(error)) from error
                self._rollout.load(change.name)
                self._asked[change.name] = None
        except ServiceError as error:
            worker.tell(Changed(change.id, error))
            return
        self._changes.append((worker, change))
        self._roll_out()

    def _roll_out(self) -> None:
        """Have the engine load what is missing, the workers name what is there, and then the engine forget the rest."""
        if self._engine_up and self._engine.child:
            for model in self._rollout.take_missing():
                self._engine.child.tell(Load(model))
        if self._rollout.served != self._told.catalogue:
            default = self._told.catalogue.default_model
            self._told = Serve(self._rollout.served, self._told.generation + 1)
            self._tell_workers(self._told)
            if self._announced:
                log.info("serving %s", ", ".join(map(str, self._rollout.served.entries)) or "nothing")
                if self._rollout.served.default_model != default:
                    log.warning("requests that name no model now mean %s", self._rollout.served.default_model)
        workers = [role.child for role in self._workers if role.child]
        if self._engine_up and self._engine.child and all(w.settled >= self._told.generation for w in workers):
            for model_id in self._rollout.take_surplus():
                self._engine.child.tell(Unload(model_id))
        if any(worker.serving < self._told.generation for worker in workers):
            return  # who is told of a change finds it, whichever worker it connects to
        for worker, change in self._changes.copy():
            outcome = self._rollout.outcome(change.name) if change.action == "load" else ""
            if outcome is not None:
                error = ServiceError(Code.MODEL_REFUSED, outcome) if outcome else None
                worker.tell(Changed(change.id, error))
                self._changes.remove((worker, change))

    def _is_ready(self, child: Child) -> None:
        child.ready_s = child.heard_s
        log.info("%s is ready, process %d", child.name, child.pid)
        self._write_ready_file()

    def _announce_once(self) -> None:
        """Say what is served and where, once every worker accepts connections and can have images classified."""
        workers = [role.child for role in self._workers]
        starting = self._engine_up is None or not all(
            worker and worker.ready_s < math.inf and worker.connected for worker in workers
        )
        if self._announced or starting or self._finish_s < math.inf:
            return
        self._announced = True
        catalogue = self._rollout.served
        for key, found in catalogue.entries.items():
            default = " (default)" if key.name == catalogue.default_model else ""
            random = any(member.manifest.weights.random for member in catalogue.members(found))
            warning = ": RANDOM WEIGHTS, its answers mean nothing" if random else ""
            log.info("serving %s%s%s", key, default, warning)
        for what, reason in catalogue.refused.items():
            log.warning("not serving %s: %s", what, reason)
        if catalogue.default_model is None:
            log.warning("requests that name no model are refused: --default-model names the one that they mean")
        url, grpc = self._addresses()
        if grpc:
            log.info("gRPC on %s", grpc)
        log.info("ready on %s", url)
        self._write_ready_file()

    def _addresses(self) -> tuple[str, str | None]:
        """URL of HTTP, host and port of gRPC."""
        scheme = "https" if self._settings.tls_certificate else "http"
        grpc_port = self._settings.grpc_port
        grpc = None if grpc_port is None else _shown(self._host, grpc_port)
        return f"{scheme}://{_shown(self._host, self._port)}", grpc

    def _write_ready_file(self) -> None:
        if not (self._ready_file and self._announced):
            return
        processes = {child.name: child.pid for child in self._children() if child.ready_s < math.inf}
        try:
            self._ready_file.write(*self._addresses(), processes)
        except OSError as error:
            log.warning("--ready-file %s: %s", self._settings.ready_file, error.strerror)

    def _on_worker_end(self, role: _Role, worker: Child) -> None:
        if self._finishing:
            role.child = None
            worker.stop()
            return
        role.ended(worker)
        self._write_ready_file()
        if self._usage:
            self._usage.clear(self._workers.index(role))
        self._roll_out()  # nothing waits for it any more
        self._metrics.restarts.labels("http").inc()
        if not self._announced and role.crashes >= MAX_FAILED_STARTS:
            raise StartupError(f"{worker.name} cannot start; its error is above")

    def _on_engine_end(self, engine: Child) -> None:
        """Have the requests wait for a new engine, unless this one never was ready or crashes follow each other."""
        self._engine.ended(engine)
        self._write_ready_file()
        self._rollout.engine_lost()
        self._metrics.restarts.labels("engine").inc()
        if not self._announced and self._engine.crashes >= MAX_FAILED_STARTS:
            raise StartupError("the engine cannot start; its error is above")
        self._engine_up = None
        self._socket_path().unlink(missing_ok=True)
        self._expect_engine(recovering=engine.ready_s < math.inf)

    def _expect_engine(self, *, recovering: bool) -> None:
        """Have requests wait for the next engine, or refuse them where failures follow each other."""
        self._recovering = recovering and self._engine.crashes <= MAX_RECOVERIES
        self._tell_workers(EngineDown(self._recovering))

    def _children(self) -> list[Child]:
        return [role.child for role in [*self._workers, self._engine] if role.child]

    def _tell_workers(self, message: object) -> None:
        for role in self._workers:
            if role.child:
                role.child.tell(message)

    def _close(self) -> None:
        self._stopped.set()
        for child in self._children():
            child.stop()
        for listener in self._listeners:
            listener.close()
        if self._reserved:
            self._reserved.close()
        self._run_folder.remove()
        if self._ready_file:
            self._ready_file.remove()
        log.info("stopped")


def _listen(host: str, port: int, count: int) -> list[socket.socket]:
    """One listening socket for each HTTP worker, all on one port; the kernel spreads connections over them.

    The supervisor keeps them open: connections that arrive while a worker is restarted wait for it.
    """
    with _taking(host, port, "--port"):
        family, port = _free_port(host, port)
        return [
            socket.create_server((host, port), family=family, reuse_port=True, backlog=BACKLOG) for _ in range(count)
        ]


def _reserve(host: str, port: int) -> socket.socket:
    """Hold a port for gRPC, which opens its listening sockets itself, in each HTTP worker.

    Raises:
        StartupError: it cannot be had, or gRPC is not installed.
    """
    if find_spec("grpc") is None:
        raise StartupError("gRPC is not installed: pip install '.[grpc]', or leave --grpc-port out")
    with _taking(host, port, "--grpc-port"):
        family, port = _free_port(host, port)
        held = socket.socket(family)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
        return held


def _free_port(host: str, port: int) -> tuple[socket.AddressFamily, int]:
    """Alone first: SO_REUSEPORT would let a second server of the same user share the port without a word."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server((host, port), family=family) as alone:
        return family, alone.getsockname()[1]


@contextlib.contextmanager
def _taking(host: str, port: int, flag: str) -> Generator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(f"cannot listen on {host} port {port}: {reason}; choose another --host or {flag}") from error


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def _signals() -> Generator[socket.socket]:
    """A socket that has a byte to read for each signal to stop."""
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.settimeout(0)
        signal.set_wakeup_fd(writer.fileno())
        before = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
