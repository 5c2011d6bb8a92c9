"""Calls that go on until their client ends them: not too many, and not beyond the server's end."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from server.errors import ServiceError

MAX_STREAMS = 64
"""At one time, in each HTTP worker."""

Context = grpc.aio.ServicerContext[Any, Any]
Refuse = Callable[[Context, ServiceError], Awaitable[Any]]
"""Ends a call with the status of an error."""


class Streams:
    """Those of one server."""

    def __init__(self) -> None:
        self._calls: set[asyncio.Task[Any]] = set()
        self.ending = asyncio.Event()
        """Streams that must answer what they have received wait for this instead."""

    def end(self) -> None:
        """Now: nobody waits for these."""
        self.ending.set()
        for call in self._calls:
            call.cancel()

    @asynccontextmanager
    async def one(self, context: Context) -> AsyncGenerator[None]:
        """The block is one of them; the end interrupts it."""
        call = asyncio.current_task()
        if self.ending.is_set() or call is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        if len(self._calls) >= MAX_STREAMS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} streams are open: end some")
        self._calls.add(call)
        try:
            yield
        except asyncio.CancelledError:
            if not self.ending.is_set():
                raise
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        finally:
            self._calls.discard(call)
