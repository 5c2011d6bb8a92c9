"""Decides which jobs run next and which have expired: a synchronous state machine without clock, threads or I/O.

Every decision is made in `take`. The caller says how much of the engine is free, then takes the jobs that are queued,
so a lone job waits for others only as long as `max_wait_s` says.
"""

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

Payload = TypeVar("Payload")

SMOOTHING = 0.2
"""Weight of the newest measurement in the learned latency of a bucket (exponential moving average)."""
EXPLORE_EVERY = 61
"""One in this many batches uses the size whose latency was learned longest ago, in case it has become faster.
A prime, so that periodic traffic does not stay in step with it."""


NEGLIGIBLE = 1e-6
"""Share of the engine that rounding may add to or take from a sum of shares."""


class Priority(IntEnum):
    """Order of service. No job runs while one of higher priority waits for the same model."""

    HIGH = 0
    NORMAL = 1
    LOW = 2
    SHADOW = 3
    """no client waits for the answer: `server.serving.shadows`"""


@dataclass(frozen=True, slots=True)
class Limits:
    """How one model may be batched and queued."""

    max_batch: int
    max_wait_s: float
    queue_size: int


class Job(NamedTuple, Generic[Payload]):
    """One image to classify. Times are seconds of the monotonic clock; `payload` is the caller's own."""

    id: Hashable
    arrived_s: float
    deadline_s: float
    payload: Payload
    quarantined: bool = False
    """Runs in a batch of its own, since an earlier batch with it crashed the engine."""
    priority: Priority = Priority.NORMAL


class Taken(NamedTuple, Generic[Payload]):
    """What `take` decided."""

    model: Hashable
    batch: Sequence[Job[Payload]]
    """Empty if nothing should run now."""
    expired: Sequence[Job[Payload]]
    """Removed from their queues: they will never run."""


def buckets(max_batch: int) -> tuple[int, ...]:
    """Batch sizes whose latency is learned: the powers of two below `max_batch`, and `max_batch` itself."""
    return (*(1 << n for n in range((max_batch - 1).bit_length())), max_batch)


@dataclass(slots=True)
class _Queue(Generic[Payload]):
    limits: Limits
    share: float
    """of the engine, that a running batch takes"""
    buckets: tuple[int, ...] = field(init=False)
    jobs: dict[Priority, dict[Hashable, Job[Payload]]] = field(
        default_factory=lambda: {level: {} for level in Priority}
    )
    length: int = 0
    quarantined: int = 0  # jobs that must run alone
    latency_s: dict[int, float] = field(default_factory=dict)  # by bucket
    learned: dict[int, int] = field(default_factory=dict)  # by bucket: when, counted in batches
    batches: int = 0
    earliest_s: float = float("inf")  # lower bound of the deadlines in `jobs`

    def __post_init__(self) -> None:
        self.buckets = buckets(self.limits.max_batch)

    def __iter__(self) -> Iterator[Job[Payload]]:
        return (job for level in self.jobs.values() for job in level.values())

    def add(self, job: Job[Payload]) -> None:
        self.jobs[job.priority][job.id] = job
        self.length += 1
        self.quarantined += job.quarantined
        self.earliest_s = min(self.earliest_s, job.deadline_s)

    def remove(self, job: Job[Payload]) -> None:
        del self.jobs[job.priority][job.id]
        self.length -= 1
        self.quarantined -= job.quarantined

    def predict_s(self, size: int) -> float:
        return self.latency_s.get(self.buckets[bisect_left(self.buckets, size)], 0.0)

    def learn(self, size: int, seconds: float) -> None:
        """Learn only from full buckets: a backend may or may not pad smaller batches."""
        if size in self.buckets:
            known = self.latency_s.get(size, seconds)
            self.latency_s[size] = known + SMOOTHING * (seconds - known)
            self.learned[size] = self.batches

    def head(self) -> Job[Payload]:
        return next(iter(self))

    def due_s(self) -> float:
        """When the head's batch should start: at once if it cannot grow, else after `max_wait_s`."""
        head = self.head()
        if not self.limits.max_wait_s or self.length >= self.limits.max_batch or self.quarantined:
            return head.arrived_s
        return min(head.arrived_s + self.limits.max_wait_s, self.earliest_s - self.predict_s(self.length))

    def fits(self, free: float) -> bool:
        """Whether a batch can run in the share of the engine that is free."""
        return self.share <= free + NEGLIGIBLE

    def makes_room_for(self, job: Job[Payload]) -> bool:
        """Whether the queue is full only because of shadows, which must not keep other jobs out."""
        others = self.length - len(self.jobs[Priority.SHADOW])
        return job.priority < Priority.SHADOW and others < self.limits.queue_size

    def expire(self, now_s: float) -> list[Job[Payload]]:
        if now_s < self.earliest_s:
            return []
        expired = [job for job in self if job.deadline_s <= now_s]
        for job in expired:
            self.remove(job)
        self.earliest_s = min((job.deadline_s for job in self), default=float("inf"))
        return expired

    def batch(self, now_s: float) -> list[Job[Payload]]:
        """Take jobs from the head: the number with the least time per image that still meets their deadlines."""
        jobs: list[Job[Payload]] = []
        for job in islice(self, self.limits.max_batch):
            if jobs and job.quarantined:
                break
            jobs.append(job)
            if job.quarantined:
                break
        self.batches += 1
        return jobs[: self.best_size(now_s, jobs)]

    def best_size(self, now_s: float, jobs: Sequence[Job[Payload]]) -> int:
        """On a GPU this is nearly always the largest; on a CPU small batches often cost less per image."""
        sizes: list[int] = []
        earliest_s = float("inf")
        for size, job in enumerate(jobs, 1):
            earliest_s = min(earliest_s, job.deadline_s)
            if (size == len(jobs) or size in self.buckets) and now_s + self.predict_s(size) <= earliest_s:
                sizes.append(size)
        if not sizes:
            return 1  # probably too late, but worth a try
        if self.batches % EXPLORE_EVERY == 0:
            return min(sizes, key=lambda size: self.learned.get(size, self.batches))
        return min(sizes, key=lambda size: (self.predict_s(size) / size, -size))


class Scheduler(Generic[Payload]):
    """One bounded queue per model, served by the priority of the first job, then in order of arrival."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, _Queue[Payload]] = {}
        self._waiting: dict[Hashable, tuple[_Queue[Payload], Job[Payload]]] = {}

    def add_model(self, model: Hashable, limits: Limits, share: float = 1.0) -> None:
        """Open an empty queue for `model`, of which a running batch takes this share of the engine (0 to 1)."""
        self._queues[model] = _Queue(limits, share)

    def remove_model(self, model: Hashable) -> list[Job[Payload]]:
        """Forget a model, and return the jobs that wait for it."""
        jobs = list(self._queues.pop(model))
        for job in jobs:
            del self._waiting[job.id]
        return jobs

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Job[Payload]]:
        """All waiting jobs."""
        return (job for queue in self._queues.values() for job in queue)

    def queue_length(self, model: Hashable) -> int:
        """Jobs of `model` that wait."""
        return self._queues[model].length

    def submit(self, model: Hashable, job: Job[Payload]) -> bool:
        """Queue a job; False if the model's queue is full, and then nothing has changed.

        Raises:
            KeyError: no such model.
        """
        queue = self._queues[model]
        if queue.length >= queue.limits.queue_size and not queue.makes_room_for(job):
            return False
        queue.add(job)
        self._waiting[job.id] = queue, job
        return True

    def cancel(self, job_id: Hashable) -> Job[Payload] | None:
        """Remove a waiting job; None if it is not waiting (it is running, has ended, or is unknown)."""
        if job_id not in self._waiting:
            return None
        queue, job = self._waiting.pop(job_id)
        queue.remove(job)
        return job

    def take(self, now_s: float, *, free: float = 1.0) -> Taken[Payload]:
        """Remove expired jobs and choose the batch to run, if the share of the engine that is `free` suffices for it.

        The model whose turn it is keeps its turn until it fits: one that needs the whole engine would starve otherwise.
        """
        expired = [job for queue in self._queues.values() for job in queue.expire(now_s)]
        batch: Sequence[Job[Payload]] = ()
        model = self._next_model(now_s) if free > NEGLIGIBLE else None
        if model is not None and (queue := self._queues[model]).fits(free):
            batch = queue.batch(now_s)
            for job in batch:
                queue.remove(job)
        for job in (*expired, *batch):
            del self._waiting[job.id]
        return Taken(model, batch, expired)

    def _next_model(self, now_s: float) -> Hashable | None:
        """The model whose first job has the highest priority and, among equals, has waited longest."""

        def rank(model: Hashable) -> tuple[Priority, float]:
            head = self._queues[model].head()
            return head.priority, head.arrived_s

        due = [model for model, queue in self._queues.items() if queue.length and queue.due_s() <= now_s]
        return min(due, key=rank, default=None)

    def observe(self, model: Hashable, size: int, seconds: float) -> None:
        """Learn that a batch of `size` took `seconds`."""
        self._queues[model].learn(size, seconds)

    def next_event_s(self, now_s: float, *, free: float = 1.0) -> float | None:
        """When `take` may have a result even if no job arrives and no batch ends; None: never."""
        busy = [queue for queue in self._queues.values() if queue.length]
        times = [queue.earliest_s for queue in busy]
        if free > NEGLIGIBLE:
            turn = self._next_model(now_s)
            fits = turn is None or self._queues[turn].fits(free)
            times += [due_s for queue in busy if (due_s := queue.due_s()) > now_s or fits]
        return min(times, default=None)
