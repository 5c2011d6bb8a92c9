"""The one place that counts how requests end."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from server.errors import CLIENT_CLOSED, ServiceError
from server.metrics import Metrics


class Outcome:
    """How one request ends. Until it is known, it is an internal error of no model."""

    __slots__ = ("_metrics", "code", "model")

    def __init__(self, metrics: Metrics, model: str = "") -> None:
        self._metrics = metrics
        self.model = model
        self.code: str = "internal_error"

    def answered(self, model: str, total_s: float) -> None:
        """It is answered, `total_s` after its last byte came."""
        self.model, self.code = model, "ok"
        self._metrics.total.labels(model).observe(total_s)


@contextmanager
def counted(metrics: Metrics, model: str = "", *, cancelled: str = CLIENT_CLOSED) -> Generator[Outcome]:
    """Count a request by the outcome that the block sets, or the error that it raises.

    `cancelled` is the code of a request whose task is cancelled: who does that depends on the transport.
    """
    outcome = Outcome(metrics, model)
    try:
        yield outcome
    except ServiceError as error:
        outcome.code = error.code
        raise
    except asyncio.CancelledError:
        outcome.code = cancelled
        raise
    finally:
        metrics.requests.labels(outcome.model, outcome.code).inc()


@contextmanager
def counted_if_refused(metrics: Metrics) -> Generator[Outcome]:
    """Count a request for several images only if all of it is refused: else each of its images counts itself."""
    outcome = Outcome(metrics)
    try:
        yield outcome
    except ServiceError as error:
        metrics.requests.labels(outcome.model, error.code).inc()
        raise
