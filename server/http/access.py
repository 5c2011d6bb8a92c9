"""A log line for each HTTP request."""

import asyncio
import logging
import time
from collections.abc import Sequence

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs, tracing
from server.http.peers import Network, client_of
from server.http.request_ids import request_id_of

MAX_PATH = 256
"""Most characters of a path that are logged."""

log = logging.getLogger(__name__)


class AccessLog:
    """Wraps the whole app, so that it logs every response, whichever layer sends it."""

    def __init__(self, app: ASGIApp, trusted_proxies: Sequence[Network]) -> None:
        self._app = app
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, then log it, even if its client has gone."""
        started_s = time.monotonic()
        request = Request(scope)
        status, trace_id = 499, None  # until a response starts: nginx's status for a client that has gone
        bytes_in = bytes_out = 0

        async def received() -> Message:
            nonlocal bytes_in
            message = await receive()
            bytes_in += len(message.get("body", b""))
            return message

        async def sent(message: Message) -> None:
            nonlocal status, trace_id, bytes_out
            if message["type"] == "http.response.start":
                status, trace_id = message["status"], tracing.trace_id()
            bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, received, sent)
        except asyncio.CancelledError:
            status = 503 if status == 499 else status  # what the protocol answers at the end of the drain
            raise
        finally:
            log.info(
                "%s %s",
                scope["method"],
                scope["raw_path"][:MAX_PATH].decode("ascii", "backslashreplace"),  # as received: has no line ends
                extra=logs.fields(
                    method=scope["method"],
                    path=scope["raw_path"][:MAX_PATH].decode("ascii", "backslashreplace"),
                    status=status,
                    ms=round((time.monotonic() - started_s) * 1e3, 3),
                    bytes_in=bytes_in,
                    bytes_out=bytes_out,
                    request_id=request_id_of(request),
                    trace_id=trace_id,
                    client=client_of(scope, self._trusted_proxies),
                    key=getattr(request.state, "key_name", None),
                ),
            )
