"""Which processes are started, killed and waited for, decided without any real process."""

import math

import pytest

from server.errors import StartupError
from server.fleet import (
    CHECK_S,
    HEALTHY_S,
    MAX_FAILED_STARTS,
    MAX_RECOVERIES,
    SUSPENDED_S,
    Action,
    Announce,
    BeginDrain,
    Fleet,
    GiveUp,
    KillProcess,
    StartProcess,
    StopAccepting,
)

ENGINE, WORKERS = "engine", ("http-0", "http-1")
STALL_S, DELAY_S, TIMEOUT_S = 60.0, 5.0, 30.0


class Simulated:
    """A fleet whose processes start at once, and whose clock only `after` advances."""

    def __init__(self, *engines: str) -> None:
        self.now_s = 1000.0
        self.fleet = Fleet(
            engines or [ENGINE],
            WORKERS,
            stall_s=STALL_S,
            drain_delay_s=DELAY_S,
            drain_timeout_s=TIMEOUT_S,
            now_s=self.now_s,
        )

    def after(self, seconds: float) -> list[Action]:
        """The actions due then; running processes keep reporting, and processes to be started have been."""
        while seconds > 0:  # in the steps in which the supervisor looks at its clock
            step_s = min(seconds, CHECK_S)
            seconds -= step_s
            self.now_s += step_s
            if seconds > 0:
                assert not self._due(), "something is due before"
        return self._due()

    def _due(self) -> list[Action]:
        for name in self.fleet.ready:
            self.fleet.heard(name, self.now_s)
        due = self.fleet.due(self.now_s)
        for action in due:
            if isinstance(action, StartProcess):
                self.fleet.started(action.name, self.now_s)
        return due

    def ready(self, *names: str) -> None:
        for name in names:
            self.fleet.became_ready(name, self.now_s)
            if name in WORKERS:
                self.fleet.connected(name)

    def started(self) -> "Simulated":
        """The same fleet, once all are ready and announced."""
        self.after(0)
        self.ready(*WORKERS, ENGINE)
        assert self.after(0) == [Announce()]
        return self

    def crash(self, name: str) -> float:
        """Let a process crash; returns the wait before its restart."""
        delay_s = self.fleet.ended(name, self.now_s)
        assert delay_s is not None
        return delay_s


def test_all_are_started_at_once_and_each_once() -> None:
    simulated = Simulated()
    assert simulated.after(0) == [StartProcess(name) for name in (*WORKERS, ENGINE)]
    assert simulated.after(0) == []


def test_the_server_is_ready_once_every_process_is_and_every_worker_has_an_engine() -> None:
    fleet = (simulated := Simulated()).fleet
    simulated.after(0)
    simulated.ready("http-0", ENGINE)
    fleet.became_ready("http-1", simulated.now_s)
    assert simulated.after(0) == []
    assert not fleet.announced
    fleet.connected("http-1")
    assert simulated.after(0) == [Announce()]
    assert simulated.after(0) == []
    assert fleet.announced
    assert fleet.ready == [*WORKERS, ENGINE]


def test_a_worker_that_dies_before_the_server_is_ready_is_waited_for_anew() -> None:
    simulated = Simulated()
    simulated.after(0)
    simulated.ready(*WORKERS)
    assert simulated.crash("http-0") == 0
    simulated.ready(ENGINE)
    assert simulated.after(0) == [StartProcess("http-0")]
    assert simulated.after(0) == []
    simulated.ready("http-0")
    assert simulated.after(0) == [Announce()]


@pytest.mark.parametrize(
    ("name", "expected_s"),
    [("http-0", [0, 0.5, 1, 1, 1]), (ENGINE, [0, 0.5, 1, 2, 4, 8, 16, 30, 30])],
)
def test_restarts_that_follow_each_other_wait_longer_and_longer(name: str, expected_s: list[float]) -> None:
    simulated = Simulated().started()
    delays_s = []
    for _ in expected_s:
        delays_s.append(simulated.crash(name))
        assert math.isclose(simulated.fleet.next_s(simulated.now_s), min(CHECK_S, delays_s[-1]))
        assert simulated.after(delays_s[-1]) == [StartProcess(name)]
        simulated.ready(name)
    assert delays_s == expected_s


def test_a_process_that_was_ready_for_long_has_recovered() -> None:
    simulated = Simulated().started()
    simulated.crash("http-0")
    simulated.after(0)
    simulated.ready("http-0")
    simulated.after(HEALTHY_S)
    assert simulated.crash("http-0") == 0.5
    simulated.after(0.5)
    simulated.ready("http-0")
    simulated.after(HEALTHY_S + 0.1)
    assert simulated.crash("http-0") == 0


def test_requests_wait_for_an_engine_unless_its_crashes_follow_each_other_or_it_never_was_ready() -> None:
    simulated = Simulated().started()
    assert simulated.fleet.is_recovering(ENGINE)
    for crash in range(1, MAX_RECOVERIES + 2):
        simulated.after(simulated.crash(ENGINE))
        assert simulated.fleet.is_recovering(ENGINE) is (crash <= MAX_RECOVERIES)
        simulated.ready(ENGINE)
    simulated.after(HEALTHY_S + 1)
    simulated.after(simulated.crash(ENGINE))
    assert simulated.fleet.is_recovering(ENGINE)
    simulated.crash(ENGINE)  # before it is ready
    assert not simulated.fleet.is_recovering(ENGINE)


@pytest.mark.parametrize(("name", "said"), [("http-1", "http-1 cannot start"), (ENGINE, "the engine cannot start")])
def test_a_process_that_never_starts_is_given_up(name: str, said: str) -> None:
    simulated = Simulated()
    simulated.after(0)
    for _ in range(MAX_FAILED_STARTS - 1):
        simulated.after(simulated.crash(name))
    with pytest.raises(StartupError, match=said):
        simulated.crash(name)


def test_a_process_that_the_system_does_not_give_ends_a_start_and_else_is_asked_for_again() -> None:
    simulated = Simulated()
    simulated.fleet.due(simulated.now_s)
    with pytest.raises(StartupError, match="http-0 cannot be started: no memory"):
        simulated.fleet.not_started("http-0", "no memory", simulated.now_s)
    simulated = Simulated().started()
    simulated.crash(ENGINE)
    delays_s = []
    for _ in range(MAX_RECOVERIES):
        assert simulated.fleet.due(simulated.now_s) == [StartProcess(ENGINE)]
        assert simulated.fleet.is_recovering(ENGINE)
        delays_s.append(simulated.fleet.not_started(ENGINE, "no memory", simulated.now_s))
        simulated.now_s += delays_s[-1]
        for name in WORKERS:
            simulated.fleet.heard(name, simulated.now_s)
    assert delays_s == [0.5, 1, 2, 4, 8]
    assert not simulated.fleet.is_recovering(ENGINE)


def test_a_process_without_progress_is_killed_once_and_the_others_are_not() -> None:
    fleet = (simulated := Simulated().started()).fleet
    killed: list[Action] = []
    for _ in range(round(STALL_S / CHECK_S) + 2):
        simulated.now_s += CHECK_S
        for name in ("http-0", ENGINE):
            fleet.heard(name, simulated.now_s)
        killed += fleet.due(simulated.now_s)
    assert killed == [KillProcess("http-1", STALL_S + CHECK_S)]


def test_silence_is_not_held_against_a_process_while_the_supervisor_was_suspended() -> None:
    fleet = (simulated := Simulated().started()).fleet
    simulated.now_s += 10 * STALL_S
    assert fleet.due(simulated.now_s) == []
    for _ in range(round(STALL_S / SUSPENDED_S)):
        simulated.now_s += SUSPENDED_S
        assert fleet.due(simulated.now_s) == []
    simulated.now_s += SUSPENDED_S
    assert {action.name for action in fleet.due(simulated.now_s) if isinstance(action, KillProcess)} == {
        *WORKERS,
        ENGINE,
    }


def test_a_drain_is_announced_then_accepts_no_more_and_ends_with_the_last_worker() -> None:
    fleet = (simulated := Simulated().started()).fleet
    assert fleet.signalled(simulated.now_s) == [BeginDrain()]
    assert (fleet.draining, fleet.finishing) == (True, False)
    assert simulated.after(DELAY_S) == [StopAccepting()]
    assert fleet.finishing
    assert simulated.after(1) == []
    for name in WORKERS:
        assert not fleet.is_over(simulated.now_s)
        assert fleet.ended(name, simulated.now_s) is None
    assert fleet.is_over(simulated.now_s)
    assert simulated.after(0) == []


def test_while_it_drains_workers_are_replaced_until_nothing_is_accepted_and_the_engine_to_the_end() -> None:
    simulated = Simulated().started()
    simulated.fleet.signalled(simulated.now_s)
    simulated.crash("http-0")
    assert simulated.after(0) == [StartProcess("http-0")]
    simulated.ready("http-0")
    assert simulated.after(DELAY_S) == [StopAccepting()]
    simulated.fleet.ended("http-0", simulated.now_s)
    assert simulated.crash(ENGINE) == 0
    assert simulated.after(0) == [StartProcess(ENGINE)]
    assert not simulated.fleet.is_over(simulated.now_s)


def test_a_drain_that_takes_too_long_is_given_up() -> None:
    simulated = Simulated().started()
    simulated.fleet.signalled(simulated.now_s)
    simulated.after(DELAY_S)
    assert simulated.after(TIMEOUT_S) == [GiveUp()]
    assert simulated.fleet.is_over(simulated.now_s)


@pytest.mark.parametrize("late", [False, True])
def test_a_second_signal_ends_all_at_once(*, late: bool) -> None:
    simulated = Simulated().started()
    simulated.fleet.signalled(simulated.now_s)
    if late:
        simulated.after(DELAY_S)
    assert simulated.fleet.signalled(simulated.now_s) == []
    assert simulated.after(0) == [GiveUp()]
    assert simulated.fleet.is_over(simulated.now_s)


def test_a_server_that_is_told_to_end_while_it_starts_never_says_that_it_is_ready() -> None:
    simulated = Simulated()
    simulated.after(0)
    simulated.fleet.signalled(simulated.now_s)
    simulated.ready(*WORKERS, ENGINE)
    assert simulated.after(DELAY_S) == [StopAccepting()]


def test_an_engine_that_never_starts_is_done_without_where_there_are_others() -> None:
    simulated = Simulated("engine-0", "engine-1")
    simulated.after(0)
    simulated.ready(*WORKERS, "engine-0")
    for _ in range(MAX_FAILED_STARTS - 1):
        assert Announce() not in simulated.after(simulated.crash("engine-1"))
    delay_s = simulated.crash("engine-1")
    assert simulated.after(0) == [Announce()]
    assert simulated.after(delay_s) == [StartProcess("engine-1")]  # it is still retried


def test_where_no_engine_starts_the_server_does_not_either() -> None:
    simulated = Simulated("engine-0", "engine-1")
    simulated.after(0)
    for _ in range(MAX_FAILED_STARTS - 1):
        simulated.after(max(simulated.crash("engine-0"), simulated.crash("engine-1")))
    simulated.crash("engine-0")
    with pytest.raises(StartupError, match="the engine cannot start"):
        simulated.crash("engine-1")


def test_each_engine_recovers_by_itself() -> None:
    simulated = Simulated("engine-0", "engine-1")
    simulated.after(0)
    simulated.ready(*WORKERS, "engine-0", "engine-1")
    simulated.after(0)
    simulated.after(simulated.crash("engine-1"))
    simulated.crash("engine-1")  # before it is ready
    assert simulated.fleet.is_recovering("engine-0")
    assert not simulated.fleet.is_recovering("engine-1")
    assert simulated.crash("engine-0") == 0
