"""The supervisor: starts the engines and the HTTP workers, watches them, restarts what dies, and drains on SIGTERM.

`Fleet` decides which processes must run, `ModelControl` which of them gets which message about models. The loop here
waits until something happens and tells both; `Children` and `ModelUpdates` carry out what they decide.
"""

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Generator
from typing import assert_never

from server import descriptors, gpus
from server.announcement import Announcement, reasons
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
    Loaded,
    Serving,
    WorkerReady,
)
from server.errors import StartupError
from server.fitting import Budget
from server.fleet import Action, Announce, BeginDrain, Fleet, GiveUp, KillProcess, StartProcess, StopAccepting
from server.model_control import ModelControl
from server.model_updates import ModelUpdates
from server.repository import Catalogue
from server.rereading import Rereading
from server.resources import Resources, worker_names
from server.settings import Settings

log = logging.getLogger(__name__)


def supervise(settings: Settings, catalogue: Catalogue) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second one stops at once. SIGHUP causes all files to be read again.

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
    """The loop. It never waits for a file that may lie on a network: threads read these."""

    def __init__(self, resources: Resources, catalogue: Catalogue, children: Children) -> None:
        settings = resources.settings
        self._resources = resources
        self._children = children
        self._engines = [place.name for place in resources.places]
        self._fleet = Fleet(
            self._engines,
            worker_names(settings),
            stall_s=settings.stall_timeout_ms / 1e3,
            drain_delay_s=settings.drain_delay_ms / 1e3,
            drain_timeout_s=settings.drain_timeout_ms / 1e3 + STOP_S,
            now_s=time.monotonic(),
        )
        self._models = ModelControl(
            catalogue,
            settings.default_model,
            len(self._engines),
            budget=Budget.of(settings),
            first=settings.models,
            patience_s=settings.stall_timeout_ms / 1e3,
        )
        self._announcement = Announcement(resources, self._models)
        self._updates = ModelUpdates(resources, self._models, children, self._announcement)
        self._files = Rereading(resources, catalogue, self._models, children.tell_workers, time.monotonic())
        for process in ("http", *self._engines):
            resources.metrics.restarts.labels(process).inc(0)  # so that it is shown before the first restart

    def run(self, signals: socket.socket) -> None:
        """Keep all processes alive until the server is to end and has answered what it accepted.

        Raises:
            StartupError: no model can be loaded, or a process cannot even start.
        """
        while True:
            now_s = time.monotonic()
            for action in self._fleet.due(now_s):
                self._perform(action)
            if self._fleet.is_over(now_s):
                return
            pids = self._children.pids
            self._announcement.show({name: pids[name] for name in self._fleet.ready})
            for event in self._children.wait(signals, self._files.bells, self._fleet.next_s(time.monotonic())):
                self._handle(event, time.monotonic())
            self._files.deliver()
            self._files.begin_due(time.monotonic())
            self._models.retry(time.monotonic())
            self._updates.send()

    def _perform(self, action: Action) -> None:
        match action:
            case StartProcess(name):
                self._start(name)
            case KillProcess(name, silent_s):
                log.error("%s has shown no progress for %.0f s: it is killed", name, silent_s)
                self._children.kill(name)
            case Announce():
                self._announcement.make()
            case BeginDrain():
                log.info("draining: no longer ready, answering accepted requests")
                self._children.tell_workers(Draining())
            case StopAccepting():
                self._children.tell_workers(Finish())
                self._resources.listeners.close()
            case GiveUp():
                log.error("stopping without waiting for requests under way")
            case _:
                assert_never(action)

    def _start(self, name: str) -> None:
        try:
            if name in self._engines:
                self._updates.start_engine(name)
            else:
                engines = map(self._engine_state, self._engines)
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
        if name in self._engines:
            self._children.tell_workers(self._engine_state(name))

    def _engine_state(self, name: str) -> EngineUp | EngineDown:
        return self._updates.engine_state(name, recovering=self._fleet.is_recovering(name))

    def _handle(self, event: Event, now_s: float) -> None:
        match event:
            case Signalled(signal.SIGHUP):
                log.info("SIGHUP: reading keys, certificate and repository again")
                self._files.begin_all(now_s)
            case Signalled():
                for action in self._fleet.signalled(now_s):
                    self._perform(action)
            case WorkerSaid(name, from_worker):
                self._fleet.heard(name, now_s)
                self._handle_worker(name, from_worker, now_s)
            case EngineSaid(name, from_engine):
                self._fleet.heard(name, now_s)
                self._handle_engine(name, from_engine, now_s)
            case WorkerEnded(name, exit_code):
                self._handle_worker_end(name, exit_code, now_s)
            case EngineEnded(name, exit_code):
                self._handle_engine_end(name, exit_code, now_s)
            case _:
                assert_never(event)

    def _handle_worker(self, name: str, message: FromWorker, now_s: float) -> None:
        match message:
            case Heartbeat():
                pass
            case WorkerReady():
                self._became_ready(name, now_s)
            case Connected():
                self._fleet.connected(name)
            case Serving(generation):
                self._models.serving(name, generation)
            case Drained(generation):
                self._models.drained(name, generation)
            case Demand():
                self._models.demanded(name, message)
            case Change(action="load"):
                self._files.load(name, message, now_s)  # once the repository has been read again
            case Change():
                self._models.asked(name, message)
            case _:
                assert_never(message)

    def _handle_engine(self, name: str, message: FromEngine, now_s: float) -> None:
        match message:
            case Heartbeat():
                pass
            case EngineReady():
                self._updates.engine_ready(name, message, now_s)
                self._check_any_model(name)
                self._became_ready(name, now_s)
                self._updates.send()
                self._children.tell_workers(self._engine_state(name))
            case Loaded():
                self._updates.loaded(name, message, now_s)
            case _:
                assert_never(message)

    def _became_ready(self, name: str, now_s: float) -> None:
        self._fleet.became_ready(name, now_s)
        log.info("%s is ready, process %d", name, self._children.pids[name])

    def _check_any_model(self, newest: str) -> None:
        """Check what the first engines have loaded, the newest of which is `newest`.

        Raises:
            StartupError: all engines are ready, and there is nothing to serve, nor will be.
        """
        served = self._models.served
        hopeful = any(refusal.is_tried_again for refusal in served.refused.values())
        waiting = set(self._fleet.hopeful_engines) - {*self._fleet.ready, newest}
        if not (self._fleet.announced or served.models or hopeful or waiting):
            raise StartupError(reasons(served) or "every model was unloaded before it was served")

    def _handle_worker_end(self, name: str, exit_code: int | None, now_s: float) -> None:
        delay_s = self._fleet.ended(name, now_s)
        self._models.worker_ended(name)
        self._files.worker_ended(name)
        if delay_s is None:
            return
        log.error("%s ended with exit code %s: restart in %g s", name, exit_code, delay_s)
        self._resources.metrics.restarts.labels("http").inc()
        self._resources.forget_usage(name)

    def _handle_engine_end(self, name: str, exit_code: int | None, now_s: float) -> None:
        """Have the other engines take over its work or, if it will soon be back, the requests wait."""
        delay_s = self._fleet.ended(name, now_s)
        log.error("%s ended with exit code %s: restart in %g s", name, exit_code, delay_s)
        self._resources.metrics.restarts.labels(name).inc()
        self._updates.engine_ended(name, now_s)
        self._children.tell_workers(self._engine_state(name))


@contextlib.contextmanager
def _signals() -> Generator[socket.socket]:
    """A socket that receives one byte for each signal, its number. An ignored SIGHUP (as by `nohup`) stays so."""
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
