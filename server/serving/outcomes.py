"""The one place that counts how requests end."""

import asyncio
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from server import tracing
from server.errors import CLIENT_CLOSED, ServiceError
from server.metrics import NO_MODEL, Labels, Metrics
from server.serving.plan import Answer


class Outcome:
    """How one request ends. Until that is set, it is an internal error of no model.

    As a context manager it counts the request at the end of the block, by the code set there or the error raised.
    """

    __slots__ = ("_cancelled", "_gone", "_metrics", "_started_s", "code", "model")

    def __init__(
        self,
        metrics: Metrics,
        model: Labels = NO_MODEL,
        *,
        cancelled: str = CLIENT_CLOSED,
        gone: type[Exception] | tuple[()] = (),
    ) -> None:
        """`cancelled` is the code for a cancelled request; `gone` is the error that tells that the client has left."""
        self._metrics = metrics
        self._cancelled = cancelled
        self._gone = gone
        self._started_s = time.monotonic()
        self.model = model
        self.code: str = "internal_error"

    def answered(self, answers: Sequence[Answer]) -> None:
        """Note that the request was answered; each stage's time is that of its slowest image."""
        self.model = model = answers[-1].plan.labels
        self.code = "ok"
        total_s = max(answer.total_s for answer in answers)
        self._metrics.total.labels(*model).add(total_s)
        stages = self._metrics.stages
        trace_id = tracing.sampled_trace_id()
        seconds = {"request": total_s}
        if computed := [answer.classes for answer in answers if not answer.remembered]:
            self._metrics.images.labels(*model).inc(len(computed))
            stages.labels(*model, "queue").observe(max(each.decode_wait_s + each.queue_s for each in computed))
            stages.labels(*model, "decode").observe(max(each.decode_s for each in computed))
            stages.labels(*model, "inference").observe(max(each.inference_s for each in computed))
            if trace_id:
                one = computed[-1]
                seconds |= {"decode_wait": one.decode_wait_s, "decode": one.decode_s}
                seconds |= {"queue": one.queue_s, "inference": one.inference_s}
        else:
            stages.labels(*model, "remembered").observe(total_s)
        if trace_id:
            self._metrics.exemplars.note(trace_id, model, seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, ServiceError):
            self.code = error.code
            self.model = error.model or self.model
        elif isinstance(error, asyncio.CancelledError):
            self.code = self._cancelled
        elif isinstance(error, self._gone):
            self.code = CLIENT_CLOSED
        self._metrics.requests.labels(*self.model, self.code).inc()
        if self.model != NO_MODEL and self.code not in ("ok", CLIENT_CLOSED):
            self._metrics.stages.labels(*self.model, "failed").observe(time.monotonic() - self._started_s)


@contextmanager
def counted_if_refused(metrics: Metrics) -> Generator[Outcome]:
    """Count a request for several images only if it is refused as a whole; otherwise each of its images is counted."""
    outcome = Outcome(metrics)
    try:
        yield outcome
    except ServiceError as error:
        metrics.requests.labels(*(error.model or outcome.model), error.code).inc()
        raise
