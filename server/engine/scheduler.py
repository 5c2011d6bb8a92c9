"""Which jobs run next, and which must not run any more: a synchronous state machine without clock, threads or I/O.

Every decision is made in `take`. The caller reserves a free execution slot first and then takes what is there, so a
lone job never waits for company that `max_wait_s` does not ask for.
"""

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Payload = TypeVar("Payload")

SMOOTHING = 0.2
"""Weight of the newest measurement in the learned latency of a bucket (exponential moving average)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How one model may be batched and queued."""

    max_batch: int
    max_wait_s: float
    queue_size: int


@dataclass(frozen=True, slots=True)
class Job(Generic[Payload]):
    """One image to classify. Times are seconds of the monotonic clock; `payload` is the caller's own."""

    id: Hashable
    arrived_s: float
    deadline_s: float
    payload: Payload
    alone: bool = False
    """Runs in a batch of its own: it was in a batch that crashed the engine, and its neighbours are to be spared."""


class Taken(NamedTuple, Generic[Payload]):
    """What `take` decided."""

    model: Hashable
    batch: Sequence[Job[Payload]]
    """Empty where nothing is to run now."""
    expired: Sequence[Job[Payload]]
    """Removed from their queues: they will never run."""


def buckets(max_batch: int) -> tuple[int, ...]:
    """Batch sizes whose latency is learned: the powers of two below `max_batch`, and `max_batch` itself."""
    return (*(1 << n for n in range((max_batch - 1).bit_length())), max_batch)


@dataclass(slots=True)
class _Queue(Generic[Payload]):
    limits: Limits
    buckets: tuple[int, ...] = field(init=False)
    jobs: dict[Hashable, Job[Payload]] = field(default_factory=dict)  # in order of arrival
    latency_s: dict[int, float] = field(default_factory=dict)  # by bucket
    earliest_s: float = float("inf")  # no deadline in `jobs` is before this one

    def __post_init__(self) -> None:
        self.buckets = buckets(self.limits.max_batch)

    def predict_s(self, size: int) -> float:
        return self.latency_s.get(self.buckets[bisect_left(self.buckets, size)], 0.0)

    def learn(self, size: int, seconds: float) -> None:
        bucket = self.buckets[bisect_left(self.buckets, size)]
        known = self.latency_s.get(bucket, seconds)
        self.latency_s[bucket] = known + SMOOTHING * (seconds - known)

    def head(self) -> Job[Payload]:
        return next(iter(self.jobs.values()))

    def due_s(self) -> float:
        """When the head's batch should start: at once if it cannot grow any more, else after the agreed wait."""
        head = self.head()
        if len(self.jobs) >= self.limits.max_batch or any(job.alone for job in self.jobs.values()):
            return head.arrived_s
        return min(head.arrived_s + self.limits.max_wait_s, self.earliest_s - self.predict_s(len(self.jobs)))

    def expire(self, now_s: float) -> list[Job[Payload]]:
        if now_s < self.earliest_s:
            return []
        expired = [job for job in self.jobs.values() if job.deadline_s <= now_s]
        for job in expired:
            del self.jobs[job.id]
        self.earliest_s = min((job.deadline_s for job in self.jobs.values()), default=float("inf"))
        return expired

    def batch(self, now_s: float) -> list[Job[Payload]]:
        """The longest run of jobs from the head whose predicted end still meets the earliest deadline among them."""
        jobs: list[Job[Payload]] = []
        for job in self.jobs.values():
            if len(jobs) == self.limits.max_batch or (jobs and job.alone):
                break
            jobs.append(job)
            if job.alone:
                break
        while len(jobs) > 1 and now_s + self.predict_s(len(jobs)) > min(job.deadline_s for job in jobs):
            del jobs[self.buckets[bisect_left(self.buckets, len(jobs)) - 1] :]
        return jobs


class Scheduler(Generic[Payload]):
    """Bounded queues, one for each model, served in the order in which their oldest jobs arrived."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, _Queue[Payload]] = {}
        self._model_of: dict[Hashable, Hashable] = {}

    def add_model(self, model: Hashable, limits: Limits) -> None:
        """Open an empty queue for `model`."""
        self._queues[model] = _Queue(limits)

    def __len__(self) -> int:
        return len(self._model_of)

    def __iter__(self) -> Iterator[Job[Payload]]:
        """All waiting jobs."""
        return (job for queue in self._queues.values() for job in queue.jobs.values())

    def queue_length(self, model: Hashable) -> int:
        """Jobs of `model` that wait."""
        return len(self._queues[model].jobs)

    def submit(self, model: Hashable, job: Job[Payload]) -> bool:
        """Queue a job; False, and nothing changed, where the model's queue is full.

        Raises:
            KeyError: no such model.
        """
        queue = self._queues[model]
        if len(queue.jobs) >= queue.limits.queue_size:
            return False
        queue.jobs[job.id] = job
        queue.earliest_s = min(queue.earliest_s, job.deadline_s)
        self._model_of[job.id] = model
        return True

    def cancel(self, job_id: Hashable) -> Job[Payload] | None:
        """Remove a waiting job; None where it does not wait (it runs, has ended, or never was)."""
        model = self._model_of.pop(job_id, None)
        return None if model is None else self._queues[model].jobs.pop(job_id)

    def take(self, now_s: float, *, slot_free: bool = True) -> Taken[Payload]:
        """Expire what is dead and, where an execution slot is free, choose the batch to run in it."""
        expired = [job for queue in self._queues.values() for job in queue.expire(now_s)]
        batch: Sequence[Job[Payload]] = ()
        due = [model for model, queue in self._queues.items() if queue.jobs and queue.due_s() <= now_s]
        model = min(due, key=lambda name: self._queues[name].head().arrived_s, default=None)
        if slot_free and model is not None:
            queue = self._queues[model]
            batch = queue.batch(now_s)
            for job in batch:
                del queue.jobs[job.id]
        for job in (*expired, *batch):
            del self._model_of[job.id]
        return Taken(model, batch, expired)

    def observe(self, model: Hashable, size: int, seconds: float) -> None:
        """Learn that a batch of `size` took `seconds`."""
        self._queues[model].learn(size, seconds)

    def next_event_s(self, *, slot_free: bool) -> float | None:
        """When `take` may have something to say though nothing arrives; None: never."""
        busy = [queue for queue in self._queues.values() if queue.jobs]
        times = [queue.earliest_s for queue in busy]
        if slot_free:
            times += [queue.due_s() for queue in busy]
        return min(times, default=None)
