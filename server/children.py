"""The running processes: starts each kind, sends them messages, and reports their messages and ends as events."""

import socket
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple, Self

from server.child import ENGINE, WORKER, Child
from server.control import FromEngine, FromWorker, Serve, Start, ToEngine, ToWorker
from server.placement import Place
from server.repository import Model
from server.resources import Resources, worker_names

Engine = Child[ToEngine, FromEngine]
Worker = Child[ToWorker, FromWorker]


class Signalled(NamedTuple):
    """The server has received a signal."""

    number: int


class WorkerSaid(NamedTuple):
    """An HTTP worker has sent a message."""

    name: str
    message: FromWorker


class EngineSaid(NamedTuple):
    """An engine has sent a message."""

    name: str
    message: FromEngine


class WorkerEnded(NamedTuple):
    """An HTTP worker has ended, for whatever reason."""

    name: str
    exit_code: int | None


class EngineEnded(NamedTuple):
    """An engine has ended."""

    name: str
    exit_code: int | None


Event = Signalled | WorkerSaid | EngineSaid | WorkerEnded | EngineEnded


class Children:
    """The HTTP workers and the engines while they run. A message to one that hangs, or has ended, blocks nobody."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._worker_names = worker_names(resources.settings)
        self._workers: dict[str, Worker] = {}
        self._engines: dict[str, Engine] = {}
        self._addresses: dict[str, Path] = {}  # of engines
        self._engine_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all of them at one time: each may take its whole grace period."""
        children = self._all()
        with ThreadPoolExecutor(len(children) or 1) as threads:
            list(threads.map(lambda child: child.stop(), children))

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {child.name: child.pid for child in self._all()}

    def start_worker(self, name: str, serve: Serve, *told: ToWorker) -> None:
        """Start an HTTP worker that serves this catalogue, and send it these messages first.

        Raises:
            OSError, EOFError: the system gives no process.
        """
        held, number = self._resources, self._worker_names.index(name)
        start = Start(
            number=number,
            places=held.places,
            settings=held.settings,
            serve=serve,
            slots=held.slots,
            listener=held.listeners.sockets[number],
            keys=held.protection.keys,
            certificate=held.protection.certificate,
            folder=held.folder,
        )
        self._workers[name] = worker = Worker.start(name, held.settings, WORKER, start)
        for message in told:
            worker.tell(message)

    def start_engine(self, place: Place, models: Sequence[Model]) -> None:
        """Start an engine at an address of its own, so that nothing meant for a dead engine reaches its successor.

        Raises:
            OSError, EOFError: the system gives no process.
        """
        self._engine_starts += 1
        held, settings = self._resources, self._resources.settings
        self._addresses[place.name] = address = held.folder / f"engine-{self._engine_starts}"
        start = place, settings, settings.repository, models, held.slots, str(address)
        self._engines[place.name] = Engine.start(place.name, settings, ENGINE, *start)

    def tell_worker(self, name: str, message: ToWorker) -> None:
        """Send a message to one HTTP worker."""
        self._workers[name].tell(message)

    def tell_workers(self, message: ToWorker) -> None:
        """Send a message to every HTTP worker."""
        for worker in self._workers.values():
            worker.tell(message)

    def tell_engine(self, name: str, message: ToEngine) -> None:
        """Send a message to an engine, if it runs."""
        if engine := self._engines.get(name):
            engine.tell(message)

    def kill(self, name: str) -> None:
        """Kill a process; `wait` reports its end."""
        for child in self._all():
            if child.name == name:
                child.kill()

    def wait(self, signals: socket.socket, others: Sequence[socket.socket], timeout_s: float) -> Generator[Event]:
        """The events that happen next: none after `timeout_s`, or if only `others` have something to read.

        A child counts as running until its end is reported here.
        """
        workers, engines = list(self._workers.values()), list(self._engines.values())
        sources: list[Connection | socket.socket] = [signals, *others]
        for child in self._all():
            sources += child.control, child.life
        happened = wait(sources, timeout_s)
        if signals in happened:
            yield from map(Signalled, signals.recv(64))
        for worker in workers:
            if worker.control in happened and (from_worker := worker.hear()) is not None:
                yield WorkerSaid(worker.name, from_worker)
        for engine in engines:
            if engine.control in happened and (from_engine := engine.hear()) is not None:
                yield EngineSaid(engine.name, from_engine)
        for worker in workers:
            if worker.life in happened:
                worker.stop()
                del self._workers[worker.name]
                yield WorkerEnded(worker.name, worker.process.exitcode)
        for engine in engines:
            if engine.life in happened:
                engine.stop()
                del self._engines[engine.name]
                self._addresses.pop(engine.name).unlink(missing_ok=True)
                yield EngineEnded(engine.name, engine.process.exitcode)

    def _all(self) -> list[Worker | Engine]:
        return [*self._workers.values(), *self._engines.values()]
