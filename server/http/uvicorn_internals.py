"""The only module that uses uvicorn's internals. All others use what uvicorn documents.

Any release of uvicorn may change them, so its version is pinned; `tests/server/http/test_uvicorn_internals.py` checks
each internal used here against the installed version.
"""
# ruff: noqa: D102  # the public methods of `Connection` are those of uvicorn and of asyncio, unless they say otherwise

import asyncio
from collections.abc import Callable, Sequence, Sized
from functools import partial
from socket import socket
from typing import Any

import uvicorn
from httptools import HttpParserError, HttpParserInvalidURLError, HttpParserUpgrade, HttpRequestParser, parse_url
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.http.disconnects import WHEN_GONE

TESTED_WITH = "0.54.0"


async def listen(server: uvicorn.Server, sockets: Sequence[socket], **tls: Any) -> None:
    """Accept connections, as the server's own `startup` does; `tls` goes to `loop.create_server`.

    uvicorn's `startup` cannot pass TLS timeouts on: asyncio would allow a minute for the handshake and half a minute
    for the shutdown.
    """
    config = server.config

    def connection() -> asyncio.Protocol:
        made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        )
        return made

    loop = asyncio.get_running_loop()
    server.servers = [
        await loop.create_server(connection, sock=sock, backlog=config.backlog, **tls) for sock in sockets
    ]


class Connection(HttpToolsProtocol):
    """One connection: uvicorn's protocol, with a named interface for subclasses.

    Pipelined requests wait in `pipeline`, the newest first. `cycle` is the newest request, `_running` the one whose
    answer is awaited or being sent.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._running: RequestResponseCycle | None = None
        self._served_by: ASGIApp = self.app
        self.app = self._run
        self._tell: Callable[[], None] | None = None

    # For the subclass.

    @property
    def idle(self) -> bool:
        """Whether no answer is owed."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waiting(self) -> int:
        """How many requests wait behind the one that is being answered."""
        return len(self.pipeline)

    @property
    def version(self) -> str:
        """HTTP version of the message whose head was parsed last."""
        return self.parser.get_http_version()

    @property
    def newest_waits(self) -> bool:
        """Whether the newest request is among the waiting ones."""
        return bool(self.pipeline) and self.pipeline[0][0] is self.cycle

    @property
    def newest_is_begun(self) -> bool:
        """Whether the head of the newest request's answer has been sent."""
        return self.cycle.response_started

    @property
    def answer_is_begun(self) -> bool:
        """Whether the head of the current answer has been sent."""
        return self._running is not None and self._running.response_started

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme == "https"

    @property
    def reading_is_paused(self) -> bool:
        """Whether this server reads nothing until earlier requests are answered or their bodies consumed."""
        return self.flow.read_paused

    @property
    def asks_for_upgrade(self) -> bool:
        """Whether the head that was parsed last asks for an upgrade; `feed` parses it again without that."""
        return self.parser.should_upgrade()

    @property
    def open_connections(self) -> int:
        """Open connections of this process, including this one."""
        return len(self.connections)

    @property
    def served_by(self) -> ASGIApp:
        """The app that answers the requests on this connection."""
        return self._served_by

    def serve_by(self, app: ASGIApp) -> None:
        """Have this app answer the requests on this connection."""
        self._served_by = app

    def feed(self, data: bytes) -> None:
        """Parse, ignoring any request for an upgrade, as RFC 9110, 7.8, lets a server do.

        The parser takes what follows a head with Upgrade for another protocol, and cannot be told otherwise. So a new
        parser gets the same head without its Upgrade field, and then the rest.

        Raises:
            HttpParserError: the data is not HTTP/1.1. An error in a method that the parser calls is its `__context__`.
        """
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        while True:
            try:
                return self.parser.feed_data(rest)
            except HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                method, version = self.parser.get_method(), self.parser.get_http_version().encode()
                if method == b"CONNECT":  # an upgrade by its nature
                    raise HttpParserError("this server does not support CONNECT") from None
                fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self.parser.feed_data(b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(fields)))

    def forget_newest(self) -> None:
        """Drop the newest request, which waits, unanswered."""
        self.pipeline.popleft()
        self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]

    def tell_gone(self) -> None:
        """Tell the request that is being answered that its client has gone.

        uvicorn tells the newest request, which is a different one with pipelining; those in between have not started.
        """
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
            if self._tell:
                self._tell()

    async def cut_off(self, scope: Scope, receive: Receive, send: Send, *, read: bool) -> None:
        """Answer a request that uvicorn cancels at the end of the drain; `read`: the request had arrived completely."""
        raise NotImplementedError

    # Called by uvicorn, the transport and the parser.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)

    def connection_lost(self, exc: Exception | None) -> None:
        self.tell_gone()
        super().connection_lost(exc)
        self.app = None  # which refers to this connection

    def on_headers_complete(self) -> None:
        """Give a target in absolute form that lacks a path (RFC 9112, 3.2.2) one: uvicorn cannot handle it as it is."""
        if not self.url.startswith((b"/", b"*")):
            try:
                target = parse_url(self.url)
            except HttpParserInvalidURLError:  # its message has the URL, of any length
                raise HttpParserError("the target is not a URL") from None
            if not target.path:
                self.url = b"/" + (b"?" + target.query if target.query else b"")
        if self.version == "1.0":
            self.expect_100_continue = False  # RFC 9110, 10.1.1
        runs_at_once = self.idle
        super().on_headers_complete()
        if runs_at_once:
            self._running = self.cycle

    def on_message_complete(self) -> None:
        if not self.asks_for_upgrade:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._running = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app, as uvicorn sees it."""
        cycle = self._running
        if cycle and cycle.waiting_for_100_continue:
            send = partial(_send_unexpected, cycle, send)
        scope["extensions"] = {WHEN_GONE: self._when_gone}
        try:
            await self._served_by(scope, receive, send)
        except asyncio.CancelledError:
            if cycle is None or cycle.response_started or self.flow.write_paused:
                # The answer is half sent, or the client does not read.
                self.tell_gone()
                self.transport.abort()
            else:
                await self.cut_off(scope, receive, send, read=not cycle.more_body)
        finally:
            del scope["extensions"]  # which refers to this connection

    def _when_gone(self, tell: Callable[[], None] | None) -> None:
        """`WHEN_GONE` for the request being answered. Resumes reading, as the transport notices a close only then."""
        self._tell = tell
        if tell:
            self.flow.resume_reading()
            if self._running is None or self._running.disconnected:
                tell()


async def _send_unexpected(cycle: RequestResponseCycle, send: Send, message: Message) -> None:
    """Close after answering a client that still waits for 100 Continue: it may or may not send the body next."""
    if cycle.waiting_for_100_continue and message["type"] == "http.response.start":
        cycle.keep_alive = False
    await send(message)


class _Flow(FlowControl):
    """Stops reading while several requests wait; with one, it reads on to notice when the client leaves."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if len(self._waiting) < 2:
            super().resume_reading()
