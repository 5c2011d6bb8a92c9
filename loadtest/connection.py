"""A minimal HTTP/1.1 client with keep-alive connections: cheap, because it shares the server's CPUs.

Requests are built once; only the status, length and `Connection: close` are read from a response's head.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

JPEG = {"Content-Type": "image/jpeg"}
IDLE_S = 2.0
"""A connection that was idle for longer is not reused: the server may be about to close it."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Response(NamedTuple):
    """The status and body of a response."""

    status: int
    body: bytes


def request(url: str, body: bytes, headers: Mapping[str, str] = JPEG) -> bytes:
    """`POST url`, as it goes over the wire."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    fields = {"Host": parts.netloc, **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {target} HTTP/1.1\r\n{head}\r\n".encode() + body


@asynccontextmanager
async def connect(url: str) -> AsyncGenerator["Connection"]:
    """A connection, closed when the block ends."""
    connection = await Connection.open(url)
    try:
        yield connection
    finally:
        connection.transport.close()


class Connection(asyncio.Protocol):
    """Sends one request at a time and waits for its response."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.idle_since_s = time.perf_counter()
        """when the last response arrived"""
        self._response: asyncio.Future[Response] = loop.create_future()
        self._response.cancel()  # none is awaited yet
        self._received = b""

    @classmethod
    async def open(cls, url: str) -> "Connection":
        """Connect to the host of a URL.

        Raises:
            OSError: it cannot be reached; the error's `filename` is the host and port.
        """
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(cls, parts.hostname or "", parts.port or 80)
        except OSError as error:
            error.filename = parts.netloc
            raise
        return connection

    async def ask(self, content: bytes) -> Response:
        """Send a request and wait for its response; after a cancellation the connection must not be used again.

        If the server refuses a request early, the rest of its body is still sent before the next request.

        Raises:
            OSError: the connection is broken, or the response is not HTTP with a Content-Length.
        """
        if not self.is_usable:
            raise ConnectionError("the server has closed the connection")
        self._response = asyncio.get_running_loop().create_future()
        self.transport.write(content)
        return await self._response

    @property
    def is_usable(self) -> bool:
        """Another request may be sent."""
        return not self.transport.is_closing()

    @property
    def is_fresh(self) -> bool:
        """The connection is usable and has been idle for less than IDLE_S."""
        return self.is_usable and time.perf_counter() - self.idle_since_s < IDLE_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self.transport = transport  # type: ignore[assignment] # a stream's

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        self.closed.set_result(None)
        self._fail(exc if isinstance(exc, OSError) else ConnectionError("the server has closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[: end + 2]
        length = _LENGTH.search(head)
        if length is None or self._response.done():
            self._fail(ConnectionError(f"a response without a length: {head[:200]!r}"))
            self.transport.abort()
            return
        last = end + 4 + int(length[1])
        if len(self._received) < last:
            return
        body, self._received = self._received[end + 4 : last], b""
        self.idle_since_s = time.perf_counter()
        if b"\r\nconnection: close\r\n" in head.lower():
            self.transport.abort()
        self._response.set_result(Response(int(head[9:12]), body))

    def _fail(self, error: OSError) -> None:
        """Fail the request that is waiting, if any."""
        if not self._response.done():
            self._response.set_exception(error)
