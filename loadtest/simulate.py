"""`python loadtest/simulate.py COSTS`: how many machines would do, at loads that no single machine can be put under.

A discrete-event simulation that drives the engine's own scheduler, and the HTTP worker's own admission and dispatch.
Around them are a model of a machine (decoders and inferences share its CPUs; their costs are measured, see
`loadtest/baseline.py`), Poisson arrivals, and a balancer before several machines. The settings are the server's own
(`SERVER_...` in the environment).

Not in it: the network, restarts, and other load on the machines. All HTTP workers of one machine count as one.
"""

import models.missing  # noqa: F401 before what may be missing

# isort: split

import argparse
import heapq
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, assert_never, get_args

import numpy as np
from pydantic import ConfigDict, Field

from loadtest import command
from loadtest.loops import poisson
from loadtest.results import Record, percentiles_ms, read
from server.engine.admission import Admission
from server.engine.dispatch import Engines
from server.engine.scheduler import Job, Limits, Scheduler
from server.errors import ServiceError
from server.settings import Settings, WrongSettingsError
from server.settings import read as read_settings

Balancer = Literal["random", "round-robin", "least-connections"]
Dispatch = Literal["least-work", "two-choices", "fill-first", "round-robin"]
"""Which engine of a machine gets an image: the server's own rule; the one of two random ones that has fewer; the first
whose next batch is not full yet; each in turn."""

MODEL = "model"
"""The schedulers know one."""
DONE_S = 1e-9
"""A task with less left to do is done: times are sums of floating-point numbers."""
MIN_REQUESTS = 1000
"""For a 99th percentile there must be some."""
WARM_UP = 0.2
"""Share of the requests, the first, that do not count."""


class Inference(Record):
    """One batch size, measured with nothing else on the machine."""

    images_per_s: Annotated[float, Field(gt=0)]
    cpu_ms: Annotated[float, Field(ge=0)]
    """of all threads, for one image; 0 where a device does it that the CPUs do not slow down"""


class Costs(Record):
    """What one image costs one machine."""

    model_config = ConfigDict(extra="forbid")

    cpus: Annotated[float, Field(gt=0)]
    decode_ms: Annotated[tuple[float, ...], Field(min_length=1)]
    """CPU time of decoding, drawn at random from these; one number where only the mean is known"""
    overhead_ms: Annotated[float, Field(ge=0)] = 0.0
    """CPU time of everything else, spent before decoding"""
    inference: Annotated[dict[int, Inference], Field(min_length=1)]
    """by images in a batch; sizes between are interpolated, larger ones take in proportion"""

    def batch(self, size: int) -> "Task":
        """What a batch of `size` images takes."""
        sizes = sorted(self.inference)
        walls_s = [one / self.inference[one].images_per_s for one in sizes]
        cpus_s = [one * self.inference[one].cpu_ms / 1e3 for one in sizes]
        wall_s = float(np.interp(size, sizes, walls_s))
        more = max(1.0, size / sizes[-1])
        return Task(more * wall_s, float(np.interp(size, sizes, cpus_s)) / wall_s)

    def image(self, chosen: random.Random) -> "Task":
        """What one image takes before it can be put into a batch, on one CPU."""
        return Task((chosen.choice(self.decode_ms) + self.overhead_ms) / 1e3, 1.0)


class Task(NamedTuple):
    """Some work."""

    alone_s: float
    """how long it takes with nothing beside it"""
    cpus: float
    """that it keeps busy then"""


class Shape(NamedTuple):
    """How each machine is set up."""

    limits: Limits
    timeout_s: float
    decoders: int
    instances: int = 1
    """batches that one engine runs at one time"""
    engines: int = 1
    dispatch: Dispatch = "least-work"
    last_takes: float = 1.0
    """times as long for a batch: the last of several engines"""

    @classmethod
    def of(cls, settings: Settings, costs: Costs) -> "Shape":
        """As the server would be; a device that the CPUs do not slow down runs one batch at a time."""
        limits = Limits(settings.max_batch, settings.max_wait_ms / 1e3, settings.queue_size)
        decoders = settings.http_workers * settings.decode_threads
        on_cpus = any(one.cpu_ms for one in costs.inference.values())
        instances = min(settings.instances, settings.inference_threads) if on_cpus else 1
        return cls(limits, settings.timeout_ms / 1e3, decoders, instances, settings.engines or 1)


class Report(Record):
    """Of the requests that count."""

    machines: int
    offered_per_s: float
    good_per_s: float
    """answered within the timeout"""
    refused: float
    """share: no place was free, or the answer would have come too late"""
    expired: float
    """share: not answered within the timeout"""
    mean_s: float
    p50_s: float
    p99_s: float
    """from arrival to answer; NaN where there are no answers"""
    mean_batch: float
    """as images see it"""
    busy: float
    """share of all CPUs' time"""
    devices_busy: float
    """share of all engines' instances' time"""


@dataclass(slots=True)
class _Request:
    number: int
    arrived_s: float
    places: int = 0
    """under way when it was admitted, with it included"""
    answered_s: float | None = None
    refused: bool = False
    batch_size: int = 0
    work_s: float = 0.0
    """that it adds to its engine"""


@dataclass(slots=True)
class _Going:
    task: Task
    jobs: Sequence[Job[_Request]]
    engine: int | None
    """None: a decoder"""
    left_s: float
    started_s: float


@dataclass(slots=True)
class Machine:
    """CPUs shared by what is under way, in proportion to what each could use; its clock goes from event to event."""

    costs: Costs
    shape: Shape
    chosen: random.Random
    schedulers: list[Scheduler[_Request]] = field(init=False)
    """by engine"""
    engines: Engines = field(init=False)
    admission: Admission = field(init=False)
    outstanding: int = 0
    busy_s: float = 0.0
    """CPU-seconds"""
    devices_busy_s: float = 0.0
    """of all engines' instances"""
    now_s: float = 0.0
    turn: int = 0
    """of the engines, for those that take turns"""
    _going: list[_Going] = field(default_factory=list)
    _undecoded: deque[Job[_Request]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.schedulers = [Scheduler() for _ in range(self.shape.engines)]
        self.engines = Engines(np.zeros((1, self.shape.engines)), 0)
        for engine, scheduler in enumerate(self.schedulers):
            scheduler.add_model(MODEL, self.shape.limits, 1 / self.shape.instances)
            self.engines.up(engine, {MODEL})
        self.admission = Admission(self.shape.limits.queue_size)

    def arrive(self, request: _Request) -> None:
        """Admit a request now, or refuse it, as an HTTP worker would; `step` comes next."""
        request.places = self.outstanding + 1
        try:
            self.admission.check(1, self.outstanding, self.shape.timeout_s)
        except ServiceError:
            request.refused = True
            return
        self.outstanding = request.places
        deadline_s = request.arrived_s + self.shape.timeout_s
        self._undecoded.append(Job(request.number, request.arrived_s, deadline_s, request))

    def advance(self, now_s: float) -> None:
        """Let time pass; nothing may be due before `now_s`."""
        speed, passed_s = self._speed(), now_s - self.now_s
        for going in self._going:
            going.left_s -= passed_s * (speed if going.task.cpus else 1.0)
            self.busy_s += passed_s * speed * going.task.cpus
            self.devices_busy_s += passed_s * (going.engine is not None)
        self.now_s = now_s

    def step(self) -> None:
        """Finish what is done, and start what can start."""
        for going in [going for going in self._going if going.left_s <= DONE_S]:
            self._going.remove(going)
            self._finish(going)
        while self._undecoded and self._count(None) < self.shape.decoders:
            job = self._undecoded.popleft()
            if job.deadline_s <= self.now_s:
                self.outstanding -= 1
            else:
                self._start(self.costs.image(self.chosen), [job], None)
        for engine, scheduler in enumerate(self.schedulers):
            while True:
                taken = scheduler.take(self.now_s, free=self._free(engine))
                self._end(taken.expired, engine)
                if not taken.batch:
                    break
                task = self.costs.batch(len(taken.batch))
                if engine == self.shape.engines - 1:
                    task = task._replace(alone_s=task.alone_s * self.shape.last_takes)
                self._start(task, taken.batch, engine)

    def next_s(self) -> float | None:
        """When to `step` next if nothing arrives; None: never."""
        speed = self._speed()
        times = [self.now_s + going.left_s / (speed if going.task.cpus else 1.0) for going in self._going]
        events_s = (
            scheduler.next_event_s(self.now_s, free=self._free(engine))
            for engine, scheduler in enumerate(self.schedulers)
        )
        times += [max(event_s, self.now_s) for event_s in events_s if event_s is not None]
        return min(times, default=None)

    def _free(self, engine: int) -> float:
        return 1 - self._count(engine) / self.shape.instances

    def _count(self, engine: int | None) -> int:
        return sum(going.engine == engine for going in self._going)

    def _choose(self) -> int:
        """Which engine gets an image that is decoded."""
        waiting = [len(scheduler) for scheduler in self.schedulers]
        match self.shape.dispatch:
            case "least-work":
                found = self.engines.choose(MODEL)
                if found is None:
                    raise AssertionError("all engines are there")
                return found
            case "two-choices":
                held = [
                    each + sum(len(it.jobs) for it in self._going if it.engine == at) for at, each in enumerate(waiting)
                ]
                two = self.chosen.sample(range(len(held)), min(2, len(held)))
                return min(two, key=held.__getitem__)
            case "fill-first":
                return next(
                    (at for at, each in enumerate(waiting) if each < self.shape.limits.max_batch),
                    waiting.index(min(waiting)),
                )
            case "round-robin":
                self.turn = (self.turn + 1) % len(self.schedulers)
                return self.turn
            case unknown:
                assert_never(unknown)

    def _speed(self) -> float:
        wanted = sum(going.task.cpus for going in self._going)
        return min(1.0, self.costs.cpus / wanted) if wanted else 1.0

    def _start(self, task: Task, jobs: Sequence[Job[_Request]], engine: int | None) -> None:
        self._going.append(_Going(task, jobs, engine, task.alone_s, self.now_s))

    def _finish(self, going: _Going) -> None:
        if going.engine is None:
            # A decoded image is in the queue from now on; its deadline is as it was.
            (job,) = going.jobs
            engine = self._choose()
            job.payload.work_s = self.engines.begin(engine, MODEL)
            self.schedulers[engine].submit(MODEL, Job(job.id, self.now_s, job.deadline_s, job.payload))
            return
        size, seconds = len(going.jobs), self.now_s - going.started_s
        self.schedulers[going.engine].observe(MODEL, size, seconds)
        self._end(going.jobs, going.engine)
        for job in going.jobs:
            self.engines.learn(going.engine, MODEL, size, seconds)
            job.payload.batch_size = len(going.jobs)
            if self.now_s <= job.deadline_s:
                job.payload.answered_s = self.now_s

    def _end(self, jobs: Sequence[Job[_Request]], engine: int) -> None:
        self.outstanding -= len(jobs)
        for job in jobs:
            self.engines.end(engine, job.payload.work_s)
            self.admission.observe(job.payload.places, self.now_s - job.payload.arrived_s)


def main() -> int:
    """Simulate and print a report as JSON; 0 is success."""
    options = _parse()
    requests = max(MIN_REQUESTS, int(options.per_s * options.seconds))
    costs = read(Costs, options.costs)
    shape = Shape.of(read_settings(()), costs)._replace(engines=options.engines, dispatch=options.dispatch)
    report = simulate(costs, shape, options.per_s, requests, options.machines, options.balancer, options.seed)
    print(report.model_dump_json())
    return 0


def simulate(
    costs: Costs,
    shape: Shape,
    per_s: float,
    requests: int,
    machines: int = 1,
    balancer: Balancer = "random",
    seed: int = 0,
) -> Report:
    """Have `requests` come at `per_s` to all machines together."""
    chosen = random.Random(seed)  # noqa: S311
    fleet = [Machine(costs, shape, chosen) for _ in range(machines)]
    turns = _turns(fleet, balancer, chosen)
    asked: list[_Request] = []
    arrivals = poisson(per_s, chosen)
    arrival_s = next(arrivals)
    events: list[tuple[float, int]] = []  # when a machine said it would do something; what it said before is void
    said: list[float | None] = [None] * machines

    def move(at: int, now_s: float, request: _Request | None = None) -> None:
        fleet[at].advance(now_s)
        if request:
            fleet[at].arrive(request)
        fleet[at].step()
        said[at] = next_s = fleet[at].next_s()
        if next_s is not None:
            heapq.heappush(events, (next_s, at))

    while len(asked) < requests or events:
        if events and (events[0][0] <= arrival_s or len(asked) == requests):
            event_s, at = heapq.heappop(events)
            if said[at] == event_s:
                move(at, event_s)
        else:
            asked.append(_Request(len(asked), arrival_s))
            move(next(turns), arrival_s, asked[-1])
            arrival_s = next(arrivals)
    return _report(asked, fleet)


def _turns(fleet: Sequence[Machine], balancer: Balancer, chosen: random.Random) -> Iterator[int]:
    """Which machine gets the next request."""
    last = -1
    while True:
        if balancer == "least-connections":
            fewest = min(machine.outstanding for machine in fleet)
            last = chosen.choice([at for at, machine in enumerate(fleet) if machine.outstanding == fewest])
        else:
            last = chosen.randrange(len(fleet)) if balancer == "random" else (last + 1) % len(fleet)
        yield last


def _report(asked: Sequence[_Request], fleet: Sequence[Machine]) -> Report:
    counted = asked[int(WARM_UP * len(asked)) :]
    latencies_s = [one.answered_s - one.arrived_s for one in counted if one.answered_s is not None]
    sizes = [one.batch_size for one in counted if one.batch_size]
    seconds = asked[-1].arrived_s - counted[0].arrived_s
    passed_s = sum(machine.now_s for machine in fleet)
    idle_or_busy_s = fleet[0].costs.cpus * passed_s
    instances = fleet[0].shape.instances * fleet[0].shape.engines
    refused = sum(one.refused for one in counted)
    p50_ms, p99_ms = percentiles_ms(latencies_s, 50, 99)
    return Report(
        machines=len(fleet),
        offered_per_s=len(counted) / seconds,
        good_per_s=len(latencies_s) / seconds,
        refused=refused / len(counted),
        expired=(len(counted) - refused - len(latencies_s)) / len(counted),
        mean_s=float(np.mean(latencies_s)) if latencies_s else np.nan,
        p50_s=p50_ms / 1e3,
        p99_s=p99_ms / 1e3,
        mean_batch=float(np.mean(sizes)) if sizes else 0.0,
        busy=sum(machine.busy_s for machine in fleet) / idle_or_busy_s if idle_or_busy_s else 0.0,
        devices_busy=sum(machine.devices_busy_s for machine in fleet) / (instances * passed_s) if passed_s else 0.0,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="simulate.py", description=__doc__)
    parser.add_argument("costs", type=Path, metavar="COSTS", help="JSON: cpus, decode_ms, overhead_ms, inference")
    parser.add_argument("--per-s", type=_positive, required=True, metavar="R", help="requests a second, all together")
    parser.add_argument("--machines", type=int, choices=range(1, 10_001), default=1, metavar="N", help="default 1")
    parser.add_argument("--balancer", choices=get_args(Balancer), default="random", help="default random")
    parser.add_argument(
        "--engines", type=int, choices=range(1, 65), default=1, metavar="N", help="of each machine (default 1)"
    )
    parser.add_argument(
        "--dispatch",
        choices=get_args(Dispatch),
        default="least-work",
        help="to them (default least-work, as the server)",
    )
    parser.add_argument("--seconds", type=_positive, default=20, metavar="S", help="simulated (default 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    return parser.parse_args()


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(command.run(main, WrongSettingsError))
