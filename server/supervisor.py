"""The supervisor: starts the engines and the HTTP workers, watches them, restarts what dies, and drains on SIGTERM.

`Fleet` decides which processes there must be, `ModelControl` what they are told of models. Here is the loop that waits
until something happens, asks them what follows, and has `Children` carry it out.
"""

import contextlib
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Generator
from typing import assert_never

from server import descriptors, gpus
from server.child import SIGNALS, STOP_S
from server.children import Children, EngineEnded, EngineSaid, Event, Signalled, WorkerEnded, WorkerSaid
from server.control import (
    Change,
    Connected,
    Demand,
    Drained,
    Draining,
    EngineDown,
    EngineReady,
    EngineUp,
    Finish,
    FromEngine,
    FromWorker,
    Heartbeat,
    Hold,
    Load,
    Loaded,
    Serving,
    WorkerReady,
)
from server.errors import StartupError
from server.fitting import Budget
from server.fleet import Action, Announce, BeginDrain, Fleet, GiveUp, KillProcess, StartProcess, StopAccepting
from server.listeners import Listeners
from server.model_control import ModelControl, TellEngine, TellWorker, TellWorkers
from server.repository import Catalogue, Model
from server.rereading import Rereading
from server.resources import Resources, worker_names
from server.settings import Settings

log = logging.getLogger(__name__)


def supervise(settings: Settings, catalogue: Catalogue) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second one stops at once. SIGHUP has all files read again.

    Raises:
        StartupError: a resource cannot be had, no model can be loaded, or a process cannot even start.
    """
    settings = descriptors.provide(settings)
    with Resources.hold(settings, catalogue) as resources, contextlib.ExitStack() as running:
        stopped = threading.Event()
        gpus.watch(resources.metrics, stopped)
        running.callback(log.info, "stopped")
        children = running.enter_context(Children(resources))
        running.callback(stopped.set)
        with _signals() as signals:
            Supervisor(resources, catalogue, children).run(signals)


class Supervisor:
    """The loop. It waits for no file: those that may lie on a network are read by threads."""

    def __init__(self, resources: Resources, catalogue: Catalogue, children: Children) -> None:
        settings = resources.settings
        self._resources = resources
        self._children = children
        self._places = {place.name: place for place in resources.places}
        self._engine_names = list(self._places)
        self._fleet = Fleet(
            self._engine_names,
            worker_names(settings),
            stall_s=settings.stall_timeout_ms / 1e3,
            drain_delay_s=settings.drain_delay_ms / 1e3,
            drain_timeout_s=settings.drain_timeout_ms / 1e3 + STOP_S,
            now_s=time.monotonic(),
        )
        self._models = ModelControl(
            catalogue,
            settings.default_model,
            len(self._places),
            budget=Budget.of(settings),
            first=settings.models,
            patience_s=settings.stall_timeout_ms / 1e3,
        )
        self._files = Rereading(resources, catalogue, self._models, children.tell_workers, time.monotonic())
        self._addresses: dict[str, str] = {}  # of the engines that are ready
        self._ready = False
        """Was announced; from then on it is at most out of service for a while."""
        resources.metrics.count_refused(catalogue.refused.values())
        for process in ("http", *self._engine_names):
            resources.metrics.restarts.labels(process).inc(0)  # to be seen before the first

    def run(self, signals: socket.socket) -> None:
        """Keep all processes alive until the server is to end, and what it has accepted is answered.

        Raises:
            StartupError: no model can be loaded, or a process cannot even start.
        """
        while True:
            now_s = time.monotonic()
            for action in self._fleet.due(now_s):
                self._perform(action)
            if self._fleet.is_over(now_s):
                return
            for event in self._children.wait(signals, self._files.bells, self._fleet.next_s(time.monotonic())):
                self._handle(event, time.monotonic())
            self._files.deliver()
            self._files.begin_due(time.monotonic())
            self._models.retry(time.monotonic())
            self._roll_out()

    def _perform(self, action: Action) -> None:
        match action:
            case StartProcess(name):
                self._start(name)
            case KillProcess(name, silent_s):
                log.error("%s has shown no progress for %.0f s: it is killed", name, silent_s)
                self._children.kill(name)
            case Announce():
                self._announce()
            case BeginDrain():
                log.info("draining: no longer ready, answering what was accepted")
                self._children.tell_workers(Draining())
            case StopAccepting():
                self._children.tell_workers(Finish())
                self._resources.listeners.close()
            case GiveUp():
                log.error("stopping without waiting for what is under way")
            case _:
                assert_never(action)

    def _start(self, name: str) -> None:
        try:
            if name in self._places:
                self._children.start_engine(self._places[name], self._models.start_engine(self._number(name)))
            else:
                engines = map(self._state_of, self._engine_names)
                draining = [Draining()] if self._fleet.draining else []
                self._children.start_worker(name, self._models.serve, *engines, *draining)
                self._models.worker_started(name)
        except (OSError, EOFError) as error:
            self._handle_failed_start(name, repr(error))
        else:
            self._fleet.started(name, time.monotonic())

    def _handle_failed_start(self, name: str, why: str) -> None:
        delay_s = self._fleet.not_started(name, why, time.monotonic())
        log.error("%s cannot be started: %s: restart in %g s", name, why, delay_s)
        if name in self._places:
            self._children.tell_workers(self._state_of(name))

    def _number(self, engine: str) -> int:
        return self._engine_names.index(engine)

    def _state_of(self, engine: str) -> EngineUp | EngineDown:
        """What HTTP workers are to know of an engine."""
        number = self._number(engine)
        if engine in self._addresses:
            return EngineUp(number, self._addresses[engine], self._models.held(number))
        return EngineDown(number, self._fleet.is_recovering(engine))

    def _handle(self, event: Event, now_s: float) -> None:
        match event:
            case Signalled(signal.SIGHUP):
                log.info("SIGHUP: keys, certificate and repository are read again")
                self._files.begin_all(now_s)
            case Signalled():
                for action in self._fleet.signalled(now_s):
                    self._perform(action)
            case WorkerSaid(name, from_worker):
                self._fleet.heard(name, now_s)
                self._handle_worker(name, from_worker)
            case EngineSaid(name, from_engine):
                self._fleet.heard(name, now_s)
                self._handle_engine(name, from_engine, now_s)
            case WorkerEnded(name, exit_code):
                self._handle_worker_end(name, exit_code, now_s)
            case EngineEnded(name, exit_code):
                self._handle_engine_end(name, exit_code, now_s)
            case _:
                assert_never(event)

    def _handle_worker(self, name: str, message: FromWorker) -> None:
        match message:
            case Heartbeat():
                pass
            case WorkerReady():
                self._became_ready(name)
            case Connected():
                self._fleet.connected(name)
            case Serving(generation):
                self._models.serving(name, generation)
            case Drained(generation):
                self._models.drained(name, generation)
            case Demand():
                self._models.demanded(name, message)
            case Change():
                self._change_model(name, message)
            case _:
                assert_never(message)

    def _handle_engine(self, name: str, message: FromEngine, now_s: float) -> None:
        match message:
            case Heartbeat():
                pass
            case EngineReady(address, refused, measured):
                self._models.engine_ready(self._number(name), refused, now_s, measured)
                self._resources.metrics.count_loads(name, len(refused), measured.values())
                self._check_any_model(name)
                self._became_ready(name)
                self._addresses[name] = address
                self._roll_out()
                self._children.tell_workers(self._state_of(name))
            case Loaded(model_id, refusal, found):
                self._models.loaded(self._number(name), model_id, refusal, now_s, found)
                self._resources.metrics.count_loads(name, refusal is not None, [found] if found else [])
            case _:
                assert_never(message)

    def _check_any_model(self, newest: str) -> None:
        """See what the first engines have, the newest of which is `newest`.

        Raises:
            StartupError: all of them are ready, and there is nothing to serve, nor will be.
        """
        served = self._models.served
        hopeful = any(refusal.is_tried_again for refusal in served.refused.values())
        waiting = set(self._fleet.hopeful_engines) - {*self._fleet.ready, newest}
        if not (self._fleet.announced or served.models or hopeful or waiting):
            raise StartupError(_reasons(served) or "every model was unloaded before it was served")

    def _handle_worker_end(self, name: str, exit_code: int | None, now_s: float) -> None:
        delay_s = self._fleet.ended(name, now_s)
        self._models.worker_ended(name)
        self._files.worker_ended(name)
        if delay_s is None:
            return
        log.error("%s ended with exit code %s: restart in %g s", name, exit_code, delay_s)
        self._resources.metrics.restarts.labels("http").inc()
        self._resources.forget_usage(name)
        self._write_ready_file()

    def _handle_engine_end(self, name: str, exit_code: int | None, now_s: float) -> None:
        """Have others do what it did, or the requests wait, unless it never was ready or crashes follow each other."""
        self._addresses.pop(name, None)
        delay_s = self._fleet.ended(name, now_s)
        log.error("%s ended with exit code %s: restart in %g s", name, exit_code, delay_s)
        self._resources.metrics.restarts.labels(name).inc()
        self._models.engine_ended(self._number(name), now_s)
        self._write_ready_file()
        self._children.tell_workers(self._state_of(name))

    def _change_model(self, worker: str, change: Change) -> None:
        """What an HTTP worker was asked for; to load a model waits for what the repository holds now."""
        match change.action:
            case "load":
                self._files.load(worker, change, time.monotonic())
            case "unload":
                self._models.asked(worker, change)
            case _:
                assert_never(change.action)

    def _roll_out(self) -> None:
        """Tell engines and HTTP workers what follows for the models."""
        before = self._models.serve.catalogue
        steps = self._models.steps()
        for step in steps:
            match step:
                case TellEngine(number, message):
                    if isinstance(message, Load):
                        self._check_room(message.model)
                    elif key := self._models.key_of(message.model_id):
                        log.info("%s makes room for others in %s", key, self._engine_names[number])
                        self._resources.metrics.evictions.inc()
                    self._children.tell_engine(self._engine_names[number], message)
                case TellWorkers(message):
                    self._children.tell_workers(message)
                    if isinstance(message, Hold):
                        continue  # what is served is the same
                    self._resources.metrics.count_refused(message.catalogue.refused.values())
                    if self._ready:
                        log_change(message.catalogue, before)
                    elif self._fleet.announced:
                        self._announce()
                case TellWorker(name, changed):
                    self._children.tell_worker(name, changed)
                case _:
                    assert_never(step)
        if steps or not self._fleet.announced:
            self._resources.metrics.count_models(self._models.states)

    def _announce(self) -> None:
        """All processes are ready: so is the server, with the first model that can be served."""
        served = self._models.served
        if served.entries:
            self._ready = True
            log_announcement(served, self._resources.listeners)
            if unloaded := self._models.states.get("unloaded"):
                log.info("%d models are loaded when requests name them", unloaded)
            self._write_ready_file()
        else:
            url = self._resources.listeners.url
            log.warning("listening on %s, and not ready: %s: this is tried again", url, _reasons(served))

    def _check_room(self, model: Model) -> None:
        """Of the first models nothing was known at the start if they could not be read.

        Raises:
            StartupError: the slots are too small, and whoever starts the server again gets other ones.
        """
        if not self._ready and math.prod(model.manifest.input_shape) > self._resources.slots.slot_bytes:
            raise StartupError(f"{model.key} can be read by now, and needs more memory than was taken: start again")

    def _became_ready(self, name: str) -> None:
        self._fleet.became_ready(name, time.monotonic())
        log.info("%s is ready, process %d", name, self._children.pids[name])
        self._write_ready_file()

    def _write_ready_file(self) -> None:
        if self._ready:
            pids = self._children.pids
            self._resources.tell_ready({name: pids[name] for name in self._fleet.ready})


def _reasons(catalogue: Catalogue) -> str:
    return "; ".join(f"{what}: {why.reason}" for what, why in catalogue.refused.items())


def log_change(catalogue: Catalogue, before: Catalogue) -> None:
    """What requests may name from now on, and what they may not any more."""
    log.info("serving %s", ", ".join(map(str, catalogue.entries)) or "nothing")
    for key, refusal in catalogue.refused.items():
        if before.refused.get(key) != refusal:
            log.warning("not serving %s: %s", key, refusal.reason)
    if catalogue.default_model != before.default_model:
        log.warning("requests that name no model now mean %s", catalogue.default_model)


def log_announcement(catalogue: Catalogue, listeners: Listeners) -> None:
    """What is served, and what is not, and where."""
    for key, found in catalogue.entries.items():
        default = " (default)" if key.name == catalogue.default_model else ""
        random = any(member.manifest.weights.random for member in catalogue.members(found))
        warning = ": RANDOM WEIGHTS, its answers mean nothing" if random else ""
        log.info("serving %s%s%s", key, default, warning)
    for key, refusal in catalogue.refused.items():
        log.warning("not serving %s: %s", key, refusal.reason)
    if catalogue.default_model is None:
        log.warning("requests that name no model are refused: --default-model names the one that they mean")
    if listeners.grpc_address:
        log.info("gRPC on %s", listeners.grpc_address)
    log.info("ready on %s", listeners.url)


@contextlib.contextmanager
def _signals() -> Generator[socket.socket]:
    """A socket that has a byte to read for each signal: its number. A SIGHUP that is ignored, by `nohup`, stays so."""
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.settimeout(0)
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]
        signal.set_wakeup_fd(writer.fileno())
        before = {number: signal.signal(number, lambda *_: None) for number in heard}
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
