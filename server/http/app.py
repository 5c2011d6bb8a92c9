"""The FastAPI application of one HTTP worker."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import VERSION
from server.http import classify, huggingface, openapi, operations, page, problems, request_ids, tracing, v1, v2
from server.http.keys import KeyCheck
from server.http.load_shedding import TIMEOUT_HEADER, LoadShedding
from server.http.uploads import Uploads
from server.serving.service import Service


def create_app(service: Service) -> ASGIApp:
    """All routes over one service."""
    app = _App(
        service=service,
        title="ResNet serving",
        description="Image classification: an image in, its most probable classes out.",
        version=VERSION,
        redirect_slashes=False,  # a redirect would go to whatever host the client named in its request
        docs_url=None,  # FastAPI's own pages load scripts from a CDN; ours is in `page`
        redoc_url=None,
        telemetry=tracing.of_requests(),
        generate_unique_id_function=openapi.operation_id,
        servers=[{"url": ".", "description": "where this document is: also behind a proxy that adds a prefix"}],
    )
    problems.install(app, service.metrics)
    uploads = Uploads(service.buffers, service.settings.max_body_bytes, service.settings.body_timeout_ms / 1e3)
    # Not `include_router`: with included routers FastAPI looks up the route of each request twice.
    app.router.routes += classify.router(service, uploads).routes
    app.include_router(operations.router(service), tags=["operations"])
    for tag, other in {"v1": v1, "v2": v2, "huggingface": huggingface}.items():
        app.include_router(other.router(service, uploads), tags=[tag])
    page.install(app)
    return _LastAnswers(_guarded(_Head(LoadShedding(app, service)), service), service)


def _guarded(app: ASGIApp, service: Service) -> ASGIApp:
    """Wrap the app in the key check, if there are keys, and that in CORS, as browsers send preflights without a key."""
    if service.keys:
        app = KeyCheck(app, service, service.keys)
    if service.settings.cors_origins:
        app = _Cors(
            app,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "X-API-Key", request_ids.HEADER, TIMEOUT_HEADER, v2.HEADER_LENGTH],
            expose_headers=[request_ids.HEADER, v2.HEADER_LENGTH, classify.CACHE_HEADER, "Retry-After"],
        )
    return app


class _Cors(CORSMiddleware):
    """Refuses with a problem document, like everything else."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < HTTPStatus.BAD_REQUEST:
            return response
        what = bytes(response.body).decode().removeprefix("Disallowed CORS ")
        detail = f"pages may not send this: {what}; --cors-origins names the origins that may"
        asked = Request({"type": "http", "headers": request_headers.raw})
        refused = problems.problem(asked, "cors_refused", HTTPStatus.BAD_REQUEST, detail)
        allowed = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        refused.headers.update(allowed)
        return refused


class _Head:
    """Answers HEAD as it does GET (RFC 9110, 9.3.2). The HTTP server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class _LastAnswers:
    """While the server drains, sends `Connection: close`, so that clients reconnect elsewhere (RFC 9112, 9.6)."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if self._service.draining and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, sent)


class _App(FastAPI):
    def __init__(self, service: Service, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._service = service

    def openapi(self) -> dict[str, Any]:
        """FastAPI's document, completed with what FastAPI does not know; built once."""
        if self.openapi_schema is None:
            keys, settings = self._service.keys, self._service.settings
            self.openapi_schema = openapi.completed(super().openapi(), keys is not None, settings.metrics_role)
        return self.openapi_schema
