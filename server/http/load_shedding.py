"""Load shedding, before FastAPI sees the request: under overload, refusals outnumber answers many times.

A refusal carries the same document that the route would answer with.
"""

import math
from contextlib import suppress

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ServiceError
from server.http import problems
from server.http.fields import field
from server.metrics import NO_MODEL
from server.serving.service import Service

PATH = "/classify"
TIMEOUT_HEADER = "X-Request-Timeout"
TIMEOUT_FIELD = TIMEOUT_HEADER.lower().encode()


class LoadShedding:
    """Refuses what could not be admitted now; passes on everything else."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        service = self._service
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            try:
                service.shed(within_s=min(service.settings.timeout_ms / 1e3, _patience_s(scope)))
            except ServiceError as error:
                # No model: a name in the query has not been looked up, and may be anything.
                service.metrics.requests.labels(*NO_MODEL, error.code).inc()
                await problems.service_problem(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _patience_s(scope: Scope) -> float:
    """The client's timeout; an invalid one counts as none here, and the route refuses it."""
    value = field(scope, TIMEOUT_FIELD)
    if value is not None:
        with suppress(ValueError):
            return float(value) if float(value) > 0 else math.inf
    return math.inf
