"""FastAPI's telemetry settings, and the trace id in each response."""

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import tracing

RESPONSE_HEADER = "traceresponse"
"""W3C Trace Context, level 2: the trace that a response belongs to, in the format of `traceparent`."""
UNTRACED = {"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}
"""Paths that machines poll every few seconds."""


def of_requests() -> TelemetryConfig:
    """FastAPI's telemetry settings for this process, so that it need not check on each request."""
    return {
        "tracing": tracing.is_on(),
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope.get("path") in UNTRACED,
    }


class TraceResponse:
    """Wraps the whole app and adds the trace id to each response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def sent(message: Message) -> None:
            context = trace.get_current_span().get_span_context()
            if message["type"] == "http.response.start" and context.is_valid:
                ids = f"{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}"
                MutableHeaders(scope=message)[RESPONSE_HEADER] = f"00-{ids}-{context.trace_flags:02x}"
            await send(message)

        await self._app(scope, receive, sent)
