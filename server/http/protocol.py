"""HTTP/1.1 on one connection: uvicorn's protocol, with bounds on what a client may send before it is a request."""
# ruff: noqa: D102  # the public methods are those of uvicorn and of asyncio

import asyncio
import logging
import re
import socket
import sys
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from httptools import HttpParserError
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import SHUTTING_DOWN
from server.http.keys import OPEN
from server.http.problems import problem
from server.http.uvicorn_internals import Connection

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Of one message: URL, header fields and trailer fields together."""
MAX_FIELDS = 100
"""Of one message: header and trailer fields together."""
MAX_PIPELINED = 100
"""Requests that may wait behind the one that is being answered. The first of more ends the connection, after theirs."""
PROBES = OPEN | {"/metrics"}
"""What is answered also where `max_connections` are open: a server that is busy is neither dead nor unobserved."""
_CONTINUE = b"HTTP/1.1 100 "
_HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*")
"""RFC 9112, 3.2: a name or an address, and a port; none of it where the target has none."""


def protocol_class(header_timeout_ms: float, max_open: int) -> type[asyncio.Protocol]:
    """The protocol to hand to uvicorn, which makes one object of it for each connection."""

    class Protocol(BoundedProtocol):
        header_timeout_s = header_timeout_ms / 1e3
        max_connections = max_open

    return Protocol


class _HeadTooLarge(Exception):  # noqa: N818  # it never leaves this module
    pass


class BoundedProtocol(Connection):
    """Adds to uvicorn's: limits on heads, a deadline for them, one write for an answer, and problem documents.

    The parser calls the `on_...` methods while it is fed. It says nothing of an unfinished field, so bytes are counted
    twice: exactly, as URL and fields become known, and as `_unreported_bytes`, those since anything else was reported.
    """

    header_timeout_s = 10.0
    """From the connection, or a message's first byte, to the end of its head."""
    stalled_s = 30.0
    """How long a client may read nothing of an answer that is too long to be sent without it."""
    max_connections = sys.maxsize
    """Of this process. Of as many more, each may ask for a probe; the rest gets a problem for an answer. What is beyond
    is closed at once."""
    crowded_timeout_s = 2.0
    """`header_timeout_s` of those: who asks nothing does not keep probes out for long."""
    longest_look_s = 1.0
    """How often to look, in the end, whether a client that sends no more is there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._out: _Answers
        self._refused = False
        self._in_head = self._in_body = False
        self._head_bytes = 0
        self._fields = 0
        self._unreported_bytes = 0

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._out = _Answers(transport, self.loop, self.stalled_s, self.longest_look_s)
        super().connection_made(self._out)
        if self.open_connections > self.max_connections:
            self.header_timeout_s = min(self.header_timeout_s, self.crowded_timeout_s)
            self.serve_by(partial(self._answer_probes, self.served_by))
        if self.open_connections > 2 * self.max_connections:
            transport.abort()
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        self._out.stop_watching()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. True: it is owed answers, and may be there to read them.

        TCP does not tell whether it has closed one direction or both, until something is sent to it. So the first byte
        of the answer goes ahead of the rest: who has closed both answers it with a reset.
        """
        if self.idle or self._refused or self._in_body or self._deadline or self.is_encrypted:
            return False
        self.shutdown()  # after the last answer
        if not self.answer_is_begun:
            self._out.send_ahead(b"H")
        return True

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unreported_bytes += len(data)
        try:
            self.feed(data)
            if self._unreported_bytes > MAX_HEAD_BYTES:
                raise _HeadTooLarge
            if self._deadline is None and (self._in_head or self.idle):
                self._expect_head()  # also for bytes that begin no message: they would hold a connection for ever
        except (HttpParserError, _HeadTooLarge) as error:
            if isinstance(error, _HeadTooLarge) or isinstance(error.__context__, _HeadTooLarge):
                detail = f"URL and headers exceed {MAX_HEAD_BYTES} bytes or {MAX_FIELDS} fields: send fewer"
                self._refuse("headers_too_large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)
            else:
                reason = error.__context__ if isinstance(error.__context__, HttpParserError) else error
                self._refuse("bad_request", HTTPStatus.BAD_REQUEST, f"not HTTP/1.1: {reason}")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._out.watch_reader()

    def resume_writing(self) -> None:
        self._out.stop_watching()
        super().resume_writing()

    # What the parser calls.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = self._fields = self._unreported_bytes = 0
        self._in_head = True
        self._cancel_deadline()  # a message has one of its own, unless all of its head is there

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._count(len(name) + len(value))
        if not self._in_body:  # a trailer is no header: RFC 9110, 6.5.1
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unreported_bytes = 0
        if self.asks_for_upgrade:
            return
        if self.waiting == MAX_PIPELINED:
            raise HttpParserError("too many requests wait")
        self._check_head()
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        self._cancel_deadline()

    def _check_head(self) -> None:
        """What the parser lets pass.

        Raises:
            HttpParserError: it is not for this server, or may mean something else to who passed it on.
        """
        if self.version not in ("1.0", "1.1"):
            raise HttpParserError(f"HTTP/{self.version} is not supported")
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
            raise HttpParserError("the request must have one Host header: a name, with or without a port")
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise HttpParserError("the server accepts no transfer coding but chunked")

    def on_chunk_header(self) -> None:
        """Progress: the framing of a body in chunks is no part of the head."""
        self._unreported_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._unreported_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unreported_bytes = 0
        self._in_body = False
        super().on_message_complete()

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > MAX_HEAD_BYTES or self._fields > MAX_FIELDS:
            raise _HeadTooLarge

    # What follows from that.

    def _expect_head(self) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(self.header_timeout_s, self._on_deadline)

    def _on_deadline(self) -> None:
        if self.reading_is_paused:
            self._expect_head()
        else:
            self.shutdown()  # at once where no answer is owed, else after those

    def _cancel_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    async def _answer_probes(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            self.shutdown()  # after the answer
            await app(scope, receive, send)
        else:
            log.warning("more than max_connections are open: what another asks for is refused")
            await _too_many_connections(scope, receive, send)

    def _refuse(self, code: str, status: HTTPStatus, detail: str) -> None:
        """Read no more, and close: after a problem document if it can only be taken for the answer to this message."""
        self._refused = True
        self._cancel_deadline()
        if self._in_body and self.newest_waits:
            self.forget_newest()  # it waited for its turn; those before it have their answers
            self._in_body = False
        if not (self._in_body or self.idle):
            self.shutdown()
            return
        if not (self._in_body and self.newest_is_begun):
            # Stands in for a request that could not be read, so that its problem has an id.
            response = problem(Request({"type": "http", "headers": []}), code, status, detail)
            fields = [*response.raw_headers, (b"connection", b"close")]
            head = f"HTTP/1.1 {status} {status.phrase}\r\n".encode() + b"".join(b"%s: %s\r\n" % each for each in fields)
            self.transport.write(head + b"\r\n" + bytes(response.body))
        self.tell_gone()
        self.transport.close()

    async def cut_off(self, scope: Scope, receive: Receive, send: Send, *, read: bool) -> None:
        detail = f"the server ended before {'the answer was ready' if read else 'it had the whole request'}"
        await _refuse_and_close(SHUTTING_DOWN, f"{detail}; send it again", scope, receive, send)


class _Answers(asyncio.Transport):
    """The transport for answers: a head leaves with its body where that comes in the same turn of the event loop.

    uvicorn writes them one after the other, uvloop sends at once what is written, and each wakes whoever waits for it.
    It watches whether who is to read them is still there, too; see `BoundedProtocol` for the times.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        stalled_s: float,
        longest_look_s: float,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._stalled_s = stalled_s
        self._longest_look_s = longest_look_s
        self._watch: asyncio.TimerHandle | None = None
        self._head = b""
        self._ahead_bytes = 0

    def send_ahead(self, data: bytes) -> None:
        """Send now what the next answer begins with, and end the connection if that is answered by a reset."""
        self._transport.write(data)
        self._ahead_bytes = len(data)
        self._look_for_reset(0.01)

    def _look_for_reset(self, next_s: float) -> None:
        """Until the answer goes on: the event loop hears of one only when it writes again."""
        if not self._ahead_bytes:
            return
        if self.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.abort()
        else:
            later_s = min(2 * next_s, self._longest_look_s)
            self._watch = self._loop.call_later(next_s, self._look_for_reset, later_s)

    def watch_reader(self, unread_bytes: int = sys.maxsize) -> None:
        """End the connection once its client has read nothing for `stalled_s`."""
        left_bytes = self.get_write_buffer_size()
        if left_bytes < unread_bytes:
            self._watch = self._loop.call_later(self._stalled_s, self.watch_reader, left_bytes)
        else:
            self.abort()

    def stop_watching(self) -> None:
        """Its client reads, or has gone."""
        if self._watch:
            self._watch.cancel()
            self._watch = None

    def write(self, data: bytes) -> None:  # type: ignore[override]
        if self._ahead_bytes:
            data, self._ahead_bytes = data[self._ahead_bytes :], 0
        if not self._head and data.startswith(b"HTTP/1.1 ") and not data.startswith(_CONTINUE):
            self._head = data
            self._loop.call_soon(self.flush)  # the body may come much later
        else:
            head, self._head = self._head, b""
            self._transport.write(head + data if head else data)

    def flush(self) -> None:
        """Send a head that no body follows by now."""
        if self._head and not self.is_closing():
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        return len(self._head) + self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


async def _too_many_connections(scope: Scope, receive: Receive, send: Send) -> None:
    detail = "this worker has max_connections open: retry later, or send several requests over one connection"
    await _refuse_and_close("too_many_connections", detail, scope, receive, send)


async def _refuse_and_close(code: str, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
    response: Response = problem(Request(scope), code, HTTPStatus.SERVICE_UNAVAILABLE, detail, retry_after_s=1)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
