"""Clients that leave."""

import asyncio
from collections.abc import Callable

from fastapi import Request
from starlette.requests import ClientDisconnect

WHEN_GONE = "serving.when_gone"
"""An extension of ASGI that our protocol has: it is given what to call once the client has gone; None: nothing more."""
WhenGone = Callable[[Callable[[], None] | None], None]


class cancelled_when_gone:  # noqa: N801  # a context manager; not a generator, as each request has one
    """Cancel what runs in the block when the client disconnects; the body must have been read.

    Raises:
        ClientDisconnect: it did.
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
        else:  # of other servers a task asks, which costs some percent of a request
            self._watcher = asyncio.create_task(_watch(self._request, self._leave))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._when_gone:
            self._when_gone(None)
        else:
            self._watcher.cancel()
            del self._watcher  # which knows this object
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
