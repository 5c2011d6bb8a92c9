"""Cancels the work for clients that disconnect, and counts it as such."""

import asyncio
from collections.abc import Callable

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.errors import SHUTTING_DOWN
from server.metrics import Metrics
from server.serving.outcomes import Outcome

WHEN_GONE = "serving.when_gone"
"""An ASGI extension of our protocol: registers a callback for when the client has gone; None removes it."""
WhenGone = Callable[[Callable[[], None] | None], None]


def counted(metrics: Metrics) -> Outcome:
    """An outcome that tells a client that has left from the end of the drain, which cancels requests."""
    return Outcome(metrics, cancelled=SHUTTING_DOWN, gone=ClientDisconnect)


class cancelled_when_gone:  # noqa: N801  # a context manager; not a generator, as each request has one
    """Cancel the block when the client disconnects; the request's body must have been read.

    Raises:
        ClientDisconnect: the client disconnected.
    """

    __slots__ = ("_gone", "_request", "_task", "_watcher", "_when_gone")

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._gone = False
        self._when_gone: WhenGone | None = self._request.scope.get("extensions", {}).get(WHEN_GONE)
        if self._when_gone:
            self._when_gone(self._leave)
        else:  # on other servers a task polls, which costs a few percent of a request
            self._watcher = asyncio.create_task(_watch(self._request, self._leave))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._when_gone:
            self._when_gone(None)
        else:
            self._watcher.cancel()
            del self._watcher  # breaks a reference cycle
        if self._gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise ClientDisconnect from None

    def _leave(self) -> None:
        self._gone = True
        if self._task is not None:
            self._task.cancel()


async def _watch(request: Request, leave: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    leave()
