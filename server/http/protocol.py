"""HTTP/1.1 on one connection: uvicorn's protocol, with bounds on what a client may send ahead of a complete request."""
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
"""Most bytes of one message's URL, header fields and trailer fields together."""
MAX_FIELDS = 100
"""Most header and trailer fields of one message."""
MAX_PIPELINED = 100
"""Requests that may wait behind the one being answered. One more, and the connection ends once these are answered."""
PROBES = OPEN | {"/metrics"}
"""Paths answered even when `max_connections` are open: a busy server must look neither dead nor unobserved."""
_CONTINUE = b"HTTP/1.1 100 "
_HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*")
"""RFC 9112, 3.2: a name or an address, and optionally a port; empty if the target has no authority."""


def protocol_class(header_timeout_ms: float, max_open: int) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn, which instantiates it once per connection."""

    class Protocol(BoundedProtocol):
        header_timeout_s = header_timeout_ms / 1e3
        max_connections = max_open

    return Protocol


class _HeadTooLarge(Exception):  # noqa: N818  # it never leaves this module
    pass


class BoundedProtocol(Connection):
    """Adds to uvicorn's protocol: limits and a deadline for heads, one write per answer, and problem documents.

    The parser calls the `on_...` methods while it is fed. It does not report a field until it is complete, so bytes are
    counted twice: exactly, as URL and fields are reported, and as `_unreported_bytes`, those fed since the last report.
    """

    header_timeout_s = 10.0
    """Time from the connection's start, or a message's first byte, to the end of the message's head."""
    stalled_s = 30.0
    """How long a client may read nothing of an answer that does not fit into the send buffers."""
    max_connections = sys.maxsize
    """Per process. As many connections again may ask for a probe; other requests on them get a problem document. Beyond
    that, connections are closed at once."""
    crowded_timeout_s = 2.0
    """`header_timeout_s` of those extra connections, so that idle ones do not keep probes out for long."""
    longest_look_s = 1.0
    """Longest interval between checks whether a client that has stopped sending is still connected."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._out: _Answers
        self._refused = False
        self._in_head = self._in_body = False
        self._head_bytes = 0
        self._fields = 0
        self._unreported_bytes = 0

    # Called by the transport.

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
        """The client sends no more. True: keep the connection open, as it may still read the answers it is owed.

        TCP does not tell whether the client has closed one direction or both until something is sent to it. So the
        first byte of the answer is sent ahead of the rest: a client that has closed both responds with a reset.
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
                self._expect_head()  # even if the bytes begin no message: else they would hold the connection for ever
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

    # Called by the parser.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = self._fields = self._unreported_bytes = 0
        self._in_head = True
        self._cancel_deadline()  # the message gets its own deadline, unless its whole head has arrived

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
        """Refuse heads that the parser accepts but this server must not.

        Raises:
            HttpParserError: the request is not for this server, or a proxy may have understood it differently.
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
        """The framing of a chunked body is not part of a head, so it does not count as unreported."""
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

    # Deadlines, probes and refusals.

    def _expect_head(self) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(self.header_timeout_s, self._on_deadline)

    def _on_deadline(self) -> None:
        if self.reading_is_paused:
            self._expect_head()
        else:
            self.shutdown()  # at once if no answers are owed, else after them

    def _cancel_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    async def _answer_probes(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            self.shutdown()  # after the answer
            await app(scope, receive, send)
        else:
            log.warning("more than max_connections are open: requests on further connections are refused")
            await _too_many_connections(scope, receive, send)

    def _refuse(self, code: str, status: HTTPStatus, detail: str) -> None:
        """Stop reading and close; first send a problem document, unless it could be taken for another answer."""
        self._refused = True
        self._cancel_deadline()
        if self._in_body and self.newest_waits:
            self.forget_newest()  # its answer has not begun
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
    """The transport for answers: sends a head and its body together if both come in one turn of the event loop.

    uvicorn writes them separately, uvloop sends each write at once, and each packet wakes the receiver. This transport
    also watches whether the client is still there; see `BoundedProtocol` for the times.
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
        """Send the first bytes of the next answer now, and end the connection if the client responds with a reset."""
        self._transport.write(data)
        self._ahead_bytes = len(data)
        self._look_for_reset(0.01)

    def _look_for_reset(self, next_s: float) -> None:
        """Poll for a reset until the answer goes on: the event loop notices one only when it writes again."""
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
        """Stop: the client reads again, or has gone."""
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
        """Send a head whose body has not followed yet."""
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
