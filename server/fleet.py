"""Which processes must run, and until when: a state machine without any I/O.

It gets events and the time, and returns the actions that follow. A process that ends is started again, at once or after
a wait that doubles with each failure in a row; one that shows no progress is killed. The first signal begins the drain:
for `drain_delay_s` the server goes on as before; then the HTTP workers answer what they have accepted, and only engines
are still restarted. A second signal, or `drain_timeout_s`, ends that wait.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from server.errors import StartupError

HEALTHY_S = 10.0
"""A process that has been ready for this long has recovered: its next crash counts as the first again."""
FIRST_DELAY_S = 0.5
"""Wait before the second restart in a row; it doubles with each. The first restart is at once."""
ENGINE_DELAY_S, WORKER_DELAY_S = 30.0, 1.0
"""The longest wait. An engine has models to load; an HTTP worker starts quickly, and while it is down the kernel still
gives it its share of the connections."""
MAX_RECOVERIES = 5
"""After more crashes in a row than this, requests no longer wait for an engine."""
MAX_FAILED_STARTS = 3
"""The server gives up if a process fails this often before the server is ready for the first time. If it is an engine,
and others are left, the server becomes ready without it and keeps trying."""
CHECK_S = 1.0
"""How often to look at the clock if nothing else happens."""
SUSPENDED_S = 2.0
"""If nobody looked for this long, the supervisor itself was suspended: silence is not held against its children."""


class StartProcess(NamedTuple):
    """Start this process, then call `Fleet.started` or `Fleet.not_started`."""

    name: str


class KillProcess(NamedTuple):
    """Kill this process, which has shown no progress for `silent_s`."""

    name: str
    silent_s: float


class Announce(NamedTuple):
    """Announce the server: for the first time, every process that it waits for is ready."""


class BeginDrain(NamedTuple):
    """Fail the readiness probe and go on serving."""


class StopAccepting(NamedTuple):
    """Accept nothing any more; the server ends once it has answered what it accepted."""


class GiveUp(NamedTuple):
    """End without waiting for requests that are still under way."""


Action = StartProcess | KillProcess | Announce | BeginDrain | StopAccepting | GiveUp


@dataclass(slots=True)
class _Process:
    """A process that must always run, and its failures."""

    longest_delay_s: float
    running: bool = False
    restart_s: float = -math.inf  # when to start it, while it does not run
    crashes: int = 0  # in a row
    heard_s: float = 0.0
    ready_s: float = math.inf
    connected: bool = False  # an HTTP worker: has connected to an engine at some time
    recovering: bool = True  # an engine: requests wait for it

    @property
    def is_ready(self) -> bool:
        """Whether it runs and has reported that it is ready."""
        return self.running and self.ready_s < math.inf

    @property
    def has_failed(self) -> bool:
        """Whether it has failed so often that the first start of the server no longer waits for it."""
        return self.crashes >= MAX_FAILED_STARTS

    def failed(self, now_s: float) -> float:
        """Note a failure; returns the seconds until the next start."""
        self.running = False
        self.crashes += 1
        delay_s = 0.0 if self.crashes == 1 else min(FIRST_DELAY_S * 2.0 ** (self.crashes - 2), self.longest_delay_s)
        self.restart_s = now_s + delay_s
        return delay_s


class Fleet:
    """The engines and the HTTP workers, by name, from the start of the server to its end."""

    def __init__(
        self,
        engines: Sequence[str],
        workers: Sequence[str],
        *,
        stall_s: float,
        drain_delay_s: float,
        drain_timeout_s: float,
        now_s: float,
    ) -> None:
        self._engines = {name: _Process(ENGINE_DELAY_S) for name in engines}
        self._workers = {name: _Process(WORKER_DELAY_S) for name in workers}
        self._all = self._workers | self._engines
        self._stall_s = stall_s
        self._drain_delay_s = drain_delay_s
        self._drain_timeout_s = drain_timeout_s
        self._checked_s = now_s
        self._finish_s = math.inf  # when to stop accepting
        self._give_up_s = math.inf  # when to stop waiting for what was accepted
        self.announced = False
        """Whether the server has been ready."""

    @property
    def draining(self) -> bool:
        """Whether the server is to end."""
        return self._finish_s < math.inf

    @property
    def finishing(self) -> bool:
        """Whether the server no longer accepts requests."""
        return self._give_up_s < math.inf

    @property
    def ready(self) -> list[str]:
        """The processes that are ready now."""
        return [name for name, process in self._all.items() if process.is_ready]

    @property
    def hopeful_engines(self) -> list[str]:
        """The engines that are ready, or have not failed too often to be waited for."""
        return [name for name, engine in self._engines.items() if engine.is_ready or not engine.has_failed]

    def is_over(self, now_s: float) -> bool:
        """Whether nothing is left to wait for."""
        return self.finishing and (
            now_s >= self._give_up_s or not any(worker.running for worker in self._workers.values())
        )

    def is_recovering(self, engine: str) -> bool:
        """Whether requests wait for this engine; else they are refused while it is down."""
        return self._engines[engine].recovering

    def next_s(self, now_s: float) -> float:
        """Seconds until something is due even if nothing happens."""
        due_s = [process.restart_s for process in self._kept_alive.values() if not process.running]
        if not self.finishing:
            due_s.append(self._finish_s)
        return max(0.0, min(CHECK_S, min(due_s, default=math.inf) - now_s))

    def due(self, now_s: float) -> list[Action]:
        """The actions that are due now; each is returned once."""
        actions: list[Action] = [*self._stalled(now_s)]
        if self._is_ready_for_the_first_time():
            self.announced = True
            actions.append(Announce())
        if now_s >= self._finish_s and not self.finishing:
            self._give_up_s = now_s + self._drain_timeout_s
            actions.append(StopAccepting())
        if now_s >= self._give_up_s:
            return [*actions, GiveUp()]
        if self.is_over(now_s):
            return actions
        restarts = self._kept_alive.items()
        actions += [StartProcess(name) for name, it in restarts if not it.running and now_s >= it.restart_s]
        return actions

    def signalled(self, now_s: float) -> list[Action]:
        """Note a signal to end; after a second one, the server ends at once."""
        if self.draining:
            self._give_up_s = -math.inf
            return []
        self._finish_s = now_s + self._drain_delay_s
        return [BeginDrain()]

    def started(self, name: str, now_s: float) -> None:
        """Note that the process was started."""
        process = self._all[name]
        process.running, process.connected = True, False
        process.heard_s, process.ready_s = now_s, math.inf

    def not_started(self, name: str, why: str, now_s: float) -> float:
        """Note that the system gave no process; returns the seconds until the next attempt.

        Raises:
            StartupError: the server was never ready.
        """
        if not self.announced:
            raise StartupError(f"{name} cannot be started: {why}")
        delay_s = self._all[name].failed(now_s)
        if name in self._engines:
            self._expect(self._engines[name], recovering=self._engines[name].recovering)
        return delay_s

    def heard(self, name: str, now_s: float) -> None:
        """Note that the process has sent a message."""
        self._all[name].heard_s = now_s

    def became_ready(self, name: str, now_s: float) -> None:
        """Note that the process is ready."""
        self._all[name].ready_s = now_s

    def connected(self, worker: str) -> None:
        """Note that an HTTP worker has connected to an engine."""
        self._workers[worker].connected = True

    def ended(self, name: str, now_s: float) -> float | None:
        """Note that the process has ended; returns the seconds until its next start, None: it has none.

        Raises:
            StartupError: the server was never ready, and will not be.
        """
        process = self._all[name]
        if name in self._workers and self.finishing:
            process.running = False
            return None
        if now_s - process.ready_s > HEALTHY_S:
            process.crashes = 0
        was_ready = process.ready_s < math.inf
        delay_s = process.failed(now_s)
        if not self.announced and process.has_failed and (name in self._workers or not self.hopeful_engines):
            what = "the engine" if name in self._engines else name
            raise StartupError(f"{what} cannot start; its error is above")
        if name in self._engines:
            self._expect(process, recovering=was_ready)
        return delay_s

    @property
    def _kept_alive(self) -> dict[str, _Process]:
        """The processes to restart if they end; once the server accepts nothing, only engines."""
        return self._engines if self.finishing else self._all

    def _stalled(self, now_s: float) -> list[KillProcess]:
        suspended_s, self._checked_s = now_s - self._checked_s, now_s
        stalled = []
        for name, process in self._all.items():
            if not process.running:
                continue
            if suspended_s > SUSPENDED_S:
                process.heard_s = min(now_s, process.heard_s + suspended_s)
            if (silent_s := now_s - process.heard_s) > self._stall_s:
                process.heard_s = now_s  # it takes a moment to die
                stalled.append(KillProcess(name, silent_s))
        return stalled

    def _is_ready_for_the_first_time(self) -> bool:
        """Whether every engine that may be is ready, and every HTTP worker accepts requests and has an engine."""
        return not (self.announced or self.draining) and all(
            self._all[name].is_ready and (name in self._engines or self._all[name].connected)
            for name in (*self._workers, *self.hopeful_engines)
        )

    def _expect(self, engine: _Process, *, recovering: bool) -> None:
        """Have requests wait for the engine's successor, unless it has crashed too often in a row."""
        engine.recovering = recovering and engine.crashes <= MAX_RECOVERIES
