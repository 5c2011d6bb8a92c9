"""Long-lived calls, which go on until their client ends them: limits their number and ends them with the server."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from server.errors import ServiceError

MAX_STREAMS = 64
"""Most streams open at one time in each HTTP worker."""

Context = grpc.aio.ServicerContext[Any, Any]
Refuse = Callable[[Context, ServiceError], Awaitable[Any]]
"""Ends a call with the status of an error."""


class Streams:
    """The open streams of one server."""

    def __init__(self) -> None:
        self._calls: set[asyncio.Task[Any]] = set()
        self.ending = asyncio.Event()
        """Set when the server ends. Streams that must answer what they have received watch this instead of `one`."""

    def end(self) -> None:
        """End all streams at once, without waiting for them."""
        self.ending.set()
        for call in self._calls:
            call.cancel()

    @asynccontextmanager
    async def one(self, context: Context) -> AsyncGenerator[None]:
        """Count the block as an open stream; `end` cancels it."""
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
