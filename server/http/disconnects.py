"""Clients that leave."""

import asyncio
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect


class cancelled_when_gone:  # noqa: N801  # a context manager; not a generator, as each request has one
    """Cancel what runs in the block when the client disconnects; the body must have been read.

    Raises:
        ClientDisconnect: it did.
    """

    __slots__ = ("_request", "_task", "_watcher")

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._watcher = asyncio.create_task(_watch(self._request, self._task))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        gone = self._watcher.done() and not self._watcher.cancelled()
        self._watcher.cancel()
        if gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise ClientDisconnect from None


async def _watch(request: Request, task: asyncio.Task[Any] | None) -> None:
    """Must not know its own task: one that was cancelled keeps its frames, so the two would wait for the collector."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    if task is not None:
        task.cancel()
