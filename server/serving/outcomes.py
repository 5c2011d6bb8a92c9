"""The one place that counts how requests end."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from server.errors import CLIENT_CLOSED, ServiceError
from server.metrics import Metrics


class Outcome:
    """How one request ends. Until it is known, it is an internal error of no model.

    As a context manager it counts the request at the end of the block, by what was set there or the error raised.
    """

    __slots__ = ("_cancelled", "_gone", "_metrics", "code", "model")

    def __init__(
        self,
        metrics: Metrics,
        model: str = "",
        *,
        cancelled: str = CLIENT_CLOSED,
        gone: type[Exception] | tuple[()] = (),
    ) -> None:
        """`cancelled` is the code of a request whose task is; `gone` is raised where its client has left."""
        self._metrics = metrics
        self._cancelled = cancelled
        self._gone = gone
        self.model = model
        self.code: str = "internal_error"

    def answered(self, model: str, total_s: float) -> None:
        """It is answered, `total_s` after its last byte came."""
        self.model, self.code = model, "ok"
        self._metrics.total.labels(model).observe(total_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, ServiceError):
            self.code = error.code
        elif isinstance(error, asyncio.CancelledError):
            self.code = self._cancelled
        elif isinstance(error, self._gone):
            self.code = CLIENT_CLOSED
        self._metrics.requests.labels(self.model, self.code).inc()


@contextmanager
def counted_if_refused(metrics: Metrics) -> Generator[Outcome]:
    """Count a request for several images only if all of it is refused: else each of its images counts itself."""
    outcome = Outcome(metrics)
    try:
        yield outcome
    except ServiceError as error:
        metrics.requests.labels(outcome.model, error.code).inc()
        raise
