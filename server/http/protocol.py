"""HTTP/1.1 on one connection: uvicorn's protocol, with bounds on what a client may send before it is a request."""
# ruff: noqa: D102  # the public methods are those of uvicorn and of asyncio

import asyncio
import logging
import math
import sys
from collections.abc import Sized
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl, service_unavailable
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from server.errors import SHUTTING_DOWN
from server.http.problems import problem

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Of one message: URL, header fields and trailer fields together."""
MAX_FIELDS = 100
"""Of one message: header and trailer fields together."""
MAX_UNREAD_BYTES = 256 * 1024
"""Of a body, before no more is read until the app has taken it: about as much as uvloop reads at once."""
MAX_PIPELINED = 100
"""Requests that may wait behind the one that is being answered. The first of more ends the connection, after theirs."""


def protocol_class(header_timeout_ms: float) -> type[asyncio.Protocol]:
    """The protocol to hand to uvicorn, which makes one object of it for each connection."""

    class Protocol(BoundedProtocol):
        header_timeout_s = header_timeout_ms / 1e3

    return Protocol


_CONTINUE = b"HTTP/1.1 100 "


class _HeadTooLarge(Exception):  # noqa: N818  # it never leaves this module
    pass


class BoundedProtocol(HttpToolsProtocol):
    """Adds to uvicorn's: limits on heads, a deadline for them, no upgrades, and problem documents.

    The parser calls the `on_...` methods while it is fed. It says nothing of an unfinished field, so bytes are counted
    twice: exactly, as URL and fields become known, and as `_unreported_bytes`, those since anything else was reported.
    """

    header_timeout_s = 10.0
    """From the connection, or a message's first byte, to the end of its head."""
    stalled_s = 30.0
    """How long a client may read nothing of an answer that is too long to be sent without it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._answer: _Answer  # the one that `_running` writes to
        self._watch: asyncio.TimerHandle | None = None
        self._refused = False
        self._in_head = True
        self._in_body = False
        self._in_body = False
        self._head_bytes = 0
        self._fields = 0
        self._unreported_bytes = 0

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        # uvicorn looks at the number for each request, and would refuse those of old connections, too
        most, self.limit_concurrency = self.limit_concurrency or math.inf, None
        if len(self.connections) > most:
            log.warning("more than max_connections are open: what another asks for is refused")
            self.app = service_unavailable
        if len(self.connections) > 2 * most:
            transport.abort()
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        self._stop_watching()
        self._tell_running()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        if self._idle and self._deadline is None:
            self._expect_head()  # also for bytes that begin no message: they would hold a connection for ever
        self._unreported_bytes += len(data)
        try:
            self._feed(data)
            if self._unreported_bytes > MAX_HEAD_BYTES:
                raise _HeadTooLarge
        except (HttpParserError, _HeadTooLarge) as error:
            if isinstance(error, _HeadTooLarge) or isinstance(error.__context__, _HeadTooLarge):
                detail = f"URL and headers exceed {MAX_HEAD_BYTES} bytes or {MAX_FIELDS} fields: send fewer"
                self._refuse("headers_too_large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)
            else:
                self._refuse("bad_request", HTTPStatus.BAD_REQUEST, f"not HTTP/1.1: {error}")

    def _feed(self, data: bytes) -> None:
        """Parse, as if nobody had asked for an upgrade: RFC 9110, 7.8, lets a server ignore that.

        The parser takes what follows the head of such a message for another protocol, and cannot be told otherwise.
        So a new one gets the same head without its Upgrade, and then what follows.
        """
        rest = memoryview(data)
        while True:
            try:
                return self.parser.feed_data(rest)
            except HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                method, version = self.parser.get_method(), self.parser.get_http_version().encode()
                if method == b"CONNECT":  # an upgrade by its nature
                    raise HttpParserError("CONNECT is not for this server") from None
                fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self.parser.feed_data(b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(fields)))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    # What the parser calls.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._fields = self._unreported_bytes = 0
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._count(len(name) + len(value))
        if self._in_head:  # a trailer is no header: RFC 9110, 6.5.1
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unreported_bytes = 0
        if self.parser.should_upgrade():
            return  # `_feed` begins this message anew
        if len(self.pipeline) == MAX_PIPELINED:
            raise HttpParserError("too many requests wait")
        self._in_head = False
        self._in_body = True
        self._cancel_deadline()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Progress: the framing of a body in chunks is no part of the head."""
        self._unreported_bytes = 0

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, but a body in one piece, as most photos come, is neither copied nor stops the reading."""
        self._unreported_bytes = 0
        cycle = self.cycle
        if cycle.response_complete:
            return
        if not cycle.body:
            cycle.body = body  # type: ignore[assignment]
        else:
            if isinstance(cycle.body, bytes):
                cycle.body = bytearray(cycle.body)
            cycle.body += body
        if len(cycle.body) > MAX_UNREAD_BYTES:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._unreported_bytes = 0
        self._in_body = False
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > MAX_HEAD_BYTES or self._fields > MAX_FIELDS:
            raise _HeadTooLarge

    # What follows from that.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        cycle.transport = self._answer = _Answer(self.transport)
        run = _too_many_connections if app is service_unavailable else partial(_until_the_end, app, cycle)
        super()._start_asgi_task(cycle, run)

    def on_response_complete(self) -> None:
        self._answer.flush()
        super().on_response_complete()

    @property
    def _idle(self) -> bool:
        """Whether no answer is owed."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(self.header_timeout_s, self._on_deadline)

    def _on_deadline(self) -> None:
        if self.flow.read_paused:  # by this server, until earlier requests are answered
            self._expect_head()
        else:
            self.shutdown()  # at once where no answer is owed, else after those

    def _cancel_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _watch_reader(self, unread_bytes: int = sys.maxsize) -> None:
        """End the connection once its client has read nothing for `stalled_s`."""
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes < unread_bytes:
            self._watch = self.loop.call_later(self.stalled_s, self._watch_reader, left_bytes)
        else:
            self.transport.abort()

    def _stop_watching(self) -> None:
        if self._watch:
            self._watch.cancel()
            self._watch = None

    def _refuse(self, code: str, status: HTTPStatus, detail: str) -> None:
        """Read no more, and close: after a problem document if it can only be taken for the answer to this message."""
        self._refused = True
        self._cancel_deadline()
        if self._in_body and self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()  # it waited for its turn; those before it have their answers
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]
            self._in_body = False
        if not (self._in_body or self._idle):
            self.shutdown()
            return
        if not (self._in_body and self.cycle.response_started):
            response = problem(_request(), code, status, detail)
            fields = b"".join(b"%s: %s\r\n" % field for field in [*response.raw_headers, (b"connection", b"close")])
            self.transport.write(STATUS_LINE[status] + fields + b"\r\n" + bytes(response.body))
        self._tell_running()
        self.transport.close()

    def _tell_running(self) -> None:
        """Tell the request that is being answered that nobody waits any more.

        uvicorn tells the newest one, which with pipelining is another; those between the two have not been started.
        """
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()


class _Flow(FlowControl):
    """Reads no further while several requests wait; with one, it still hears that its client has left."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if len(self._waiting) < 2:
            super().resume_reading()


class _Answer(asyncio.Transport):
    """The transport for one answer, whose head waits for the first of its body, so that both leave together.

    uvicorn writes them one after the other, uvloop sends at once what is written, and each wakes whoever waits for it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._begun = False
        self._head: bytes = b""
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.abort = transport.abort  # type: ignore[method-assign]

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if self._begun or data.startswith(_CONTINUE):
            self._transport.write(self._head + data)
            self._head = b""
        else:
            self._begun, self._head = True, data

    def flush(self) -> None:
        """Send a head that no body follows."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()


def _request() -> Request:
    """Stands in for a request that could not be read, so that its problem has an id."""
    return Request({"type": "http", "headers": []})


async def _until_the_end(
    app: ASGI3Application, cycle: RequestResponseCycle, scope: Any, receive: Any, send: Any
) -> None:
    """Run the app; uvicorn cancels what the drain's end finds under way."""
    try:
        await app(scope, receive, send)
    except asyncio.CancelledError:
        if cycle.response_started or cycle.flow.write_paused:  # half an answer, or nobody who reads one
            cycle.disconnected = True
            cycle.transport.abort()
            return
        what = "it had the whole request" if cycle.more_body else "the answer was ready"
        detail = f"the server ended before {what}; send it again"
        await _refuse_and_close(SHUTTING_DOWN, detail, scope, receive, send)


async def _too_many_connections(scope: Any, receive: Any, send: Any) -> None:
    detail = "this worker has max_connections open: retry later, or send several requests over one connection"
    await _refuse_and_close("too_many_connections", detail, scope, receive, send)


async def _refuse_and_close(code: str, detail: str, scope: Any, receive: Any, send: Any) -> None:
    response: Response = problem(Request(scope), code, HTTPStatus.SERVICE_UNAVAILABLE, detail, retry_after_s=1)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
