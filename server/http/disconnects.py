"""Clients that leave."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect


@asynccontextmanager
async def cancelled_when_gone(request: Request) -> AsyncGenerator[None]:
    """Cancel what runs in the block when the client disconnects; the body must have been read.

    Raises:
        ClientDisconnect: it did.
    """
    task = asyncio.current_task()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if task is not None:
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if task is not None and watcher.done() and not watcher.cancelled():
            task.uncancel()
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()
