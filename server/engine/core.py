"""The engine core: a scheduler, loaded backends, and threads that run one batch each.

It knows nothing of processes, sockets or HTTP. One thread owns it and calls its methods; `wake` is called from others
when `step` has something to collect.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import reduce
from operator import or_
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.engine.backends import Backend, Outputs
from server.engine.classes import NOTHING, Classes, Extras
from server.engine.scheduler import NEGLIGIBLE, Job, Limits, Scheduler
from server.errors import Code, DeviceLostError, ServiceError


class Decoded(Protocol):
    """What the engine needs of a job's payload."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8[H, W, 3]; the engine reads it while the job's batch runs; with the outcome the owner may reuse it."""

    @property
    def top_k(self) -> int | None:
        """How many classes are wanted; None: the logits of all, and no more."""

    @property
    def include(self) -> Extras:
        """What is wanted besides the classes."""


Payload = TypeVar("Payload", bound=Decoded)

MAX_INSTANCES = 8
"""Limit on concurrent batches, whatever the backends ask for: each takes a thread."""


class Outcome(NamedTuple, Generic[Payload]):
    """The result of a job; each job has exactly one."""

    job: Job[Payload]
    result: Classes | ServiceError


class _Batch(NamedTuple, Generic[Payload]):
    model: Hashable
    jobs: Sequence[Job[Payload]]
    started_s: float
    share: float
    """of the engine"""


class Engine(Generic[Payload]):
    """Runs jobs in batches, as many at once as its backends gain from; each submitted job has exactly one outcome."""

    def __init__(
        self,
        *,
        wake: Callable[[], None],
        on_start: Callable[[Sequence[Job[Payload]]], None] = lambda _: None,
        on_end: Callable[[Sequence[Job[Payload]], float | None], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_start` is called with each batch, `on_end` also with the seconds it took; None: it failed."""
        self._backends: dict[Hashable, Backend] = {}
        self._scheduler: Scheduler[Payload] = Scheduler()
        self._wake = wake
        self._on_start = on_start
        self._on_end = on_end
        self._clock = clock
        self._threads = ThreadPoolExecutor(MAX_INSTANCES, thread_name_prefix="instance")
        self._running: dict[Future[tuple[Outputs, float]], _Batch[Payload]] = {}
        self._leaving: dict[Hashable, Backend] = {}  # removed while a batch was running

    def add_model(
        self, model: Hashable, backend: Backend, limits: Limits, latency_s: Mapping[int, float] | None = None
    ) -> None:
        """Accept jobs for a model; `latency_s`: its latency as already measured, by batch size."""
        self._backends[model] = backend
        self._scheduler.add_model(model, limits, _share(backend))
        for size, seconds in (latency_s or {}).items():
            self._scheduler.observe(model, size, seconds)

    def remove_model(self, model: Hashable) -> list[Outcome[Payload]]:
        """Remove a model; its waiting jobs fail, and its running batches end as usual."""
        backend = self._backends.pop(model, None)
        if backend is None:
            return []
        if any(batch.model == model for batch in self._running.values()):
            self._leaving[model] = backend
        else:
            backend.close()
        gone = ServiceError(Code.ENGINE_UNAVAILABLE, "the model was unloaded; try again")
        return [Outcome(job, gone) for job in self._scheduler.remove_model(model)]

    def __len__(self) -> int:
        """Jobs that wait or run."""
        return len(self._scheduler) + sum(len(batch.jobs) for batch in self._running.values())

    def queue_length(self, model: Hashable) -> int:
        """Jobs of `model` that wait."""
        return self._scheduler.queue_length(model)

    def submit(self, model: Hashable, job: Job[Payload]) -> None:
        """Queue a job.

        Raises:
            ServiceError: QUEUE_FULL or UNKNOWN_MODEL; nothing has changed.
        """
        if model not in self._backends:
            raise ServiceError(Code.UNKNOWN_MODEL, f"{model} is not loaded")
        if not self._scheduler.submit(model, job):
            raise ServiceError(Code.QUEUE_FULL, "the model's queue is full; try again later")

    def cancel(self, job_id: Hashable) -> Job[Payload] | None:
        """Withdraw a waiting job, without an outcome; None if it is running (its outcome will come) or unknown."""
        return self._scheduler.cancel(job_id)

    def cancel_where(self, unwanted: Callable[[Job[Payload]], bool]) -> None:
        """Withdraw all waiting jobs that are `unwanted`, without outcomes."""
        for job_id in [job.id for job in self._scheduler if unwanted(job)]:
            self._scheduler.cancel(job_id)

    def step(self) -> list[Outcome[Payload]]:
        """Collect the jobs that have finished or expired, and start the batches that can start.

        Raises:
            DeviceLostError: this process cannot run anything more. Its jobs end with it; a new process gets them.
        """
        outcomes = [outcome for future in list(self._running) if future.done() for outcome in self._finish(future)]
        while True:
            taken = self._scheduler.take(self._clock(), free=self._free)
            outcomes += [Outcome(job, _too_late()) for job in taken.expired]
            if not taken.batch:
                return outcomes
            self._start(taken.model, taken.batch)

    @property
    def busy(self) -> bool:
        """Whether no batch can start before a running one ends."""
        return self._free <= NEGLIGIBLE

    @property
    def _free(self) -> float:
        """Share of the engine that no running batch takes."""
        return 1 - sum(batch.share for batch in self._running.values())

    def next_event_s(self) -> float | None:
        """When to call `step` even without a new job or a call of `wake`; None: never."""
        return self._scheduler.next_event_s(self._clock(), free=self._free)

    def oldest_start_s(self) -> float | None:
        """When the longest-running batch started; None if none runs."""
        return min((batch.started_s for batch in self._running.values()), default=None)

    def close(self) -> None:
        """Wait for running batches."""
        self._threads.shutdown()

    def _start(self, model: Hashable, jobs: Sequence[Job[Payload]]) -> None:
        self._on_start(jobs)
        started_s = self._clock()  # before the other thread can start
        backend = self._backends[model]
        alone = not self._running and not len(self._scheduler)  # what waits starts next, beside it
        run = backend.run if alone else backend.run_beside
        future = self._threads.submit(self._run, run, jobs)
        self._running[future] = _Batch(model, jobs, started_s, _share(backend))
        future.add_done_callback(lambda _: self._wake())

    def _run(
        self, run: Callable[[Sequence[NDArray[np.uint8]], Extras], Outputs], jobs: Sequence[Job[Payload]]
    ) -> tuple[Outputs, float]:
        started_s = self._clock()
        wanted = reduce(or_, {job.payload.include for job in jobs})
        outputs = run([job.payload.pixels for job in jobs], wanted)
        if any(rows is not None and len(rows) != len(jobs) for rows in outputs):
            raise ValueError(f"{len(jobs)} images have {len(outputs.indices)} answers; the model's graph is wrong")
        return outputs, self._clock() - started_s

    def _finish(self, future: Future[tuple[Outputs, float]]) -> list[Outcome[Payload]]:
        batch = self._running.pop(future)
        if batch.model in self._leaving and all(other.model != batch.model for other in self._running.values()):
            self._leaving.pop(batch.model).close()
        error = future.exception()
        if isinstance(error, DeviceLostError):
            raise error
        if error is not None:
            self._on_end(batch.jobs, None)
            failed = ServiceError(Code.INFERENCE_FAILED, f"the inference failed: {type(error).__name__}: {error}")
            return [Outcome(job, failed) for job in batch.jobs]
        outputs, seconds = future.result()
        self._on_end(batch.jobs, seconds)
        if batch.model in self._backends:
            self._scheduler.observe(batch.model, len(batch.jobs), seconds)
        return [Outcome(job, _classes(batch, row, outputs, seconds)) for row, job in enumerate(batch.jobs)]


def _share(backend: Backend) -> float:
    """Of the engine that one batch takes."""
    return 1 / min(MAX_INSTANCES, backend.instances)


def _classes(batch: _Batch[Payload], row: int, outputs: Outputs, seconds: float) -> Classes:
    """The part of a batch's outputs that one of its jobs asked for."""
    job = batch.jobs[row]
    top_k, include = job.payload.top_k, job.payload.include
    classes = Classes(
        outputs.probabilities[row, : top_k or 0],
        outputs.indices[row, : top_k or 0],
        outputs.logits[row] if top_k is None or (include and Extras.LOGITS in include) else NOTHING,
        batch.started_s - job.arrived_s,
        seconds,
        len(batch.jobs),
    )
    if outputs.features is not None and Extras.FEATURES in include:
        classes = classes._replace(features=outputs.features[row])
    if outputs.activation_maps is not None and Extras.HEATMAP in include:
        classes = classes._replace(activation_maps=outputs.activation_maps[row, : top_k or 0])
    return classes


def _too_late() -> ServiceError:
    return ServiceError(Code.DEADLINE_EXCEEDED, "the deadline passed before an inference could start")
