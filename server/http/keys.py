"""API keys over HTTP: middleware before the routes, installed only if the server has keys."""

import time

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http import page
from server.http.problems import STATUS, problem
from server.keys import Keys, RefusedError, RoleName, bearer
from server.serving.service import Service

OPEN = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Probes: machines without a key call them, and they disclose nothing but health."""
CHANGES = "/v2/repository/models/"
"""Prefix of the paths that load and unload models."""


class KeyCheck:
    """Passes on requests whose key has the role they need, and refuses the others before reading their body."""

    def __init__(self, app: ASGIApp, service: Service, keys: Keys) -> None:
        self._app = app
        self._keys = keys
        self._refused = service.metrics.refused
        self._metrics_role = service.settings.metrics_role

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        role = self._role(scope["method"], scope["path"])
        if role is None:
            await self._app(scope, receive, send)
            return
        try:
            account = self._keys.account(_sent(scope), role)
            under_way = account.enter(time.monotonic())
        except RefusedError as error:
            scope.setdefault("state", {})["key_name"] = error.key  # for the access log
            self._refused.labels(error.code).inc()
            response = problem(Request(scope), error.code, STATUS[error.code], error.detail, error.retry_after_s)
            if STATUS[error.code] == 401:
                response.headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, 15.5.2, demands one
            await response(scope, receive, send)
            return
        scope.setdefault("state", {})["key_name"] = account.key.name
        with under_way:
            await self._app(scope, receive, send)

    def _role(self, method: str, path: str) -> RoleName | None:
        """The role a key needs for this; None: no key is needed. `path` is the one that routing uses."""
        if path in OPEN or page.is_file(method, path):
            return None
        if path == "/metrics":
            return None if self._metrics_role == "none" else self._metrics_role
        return "admin" if path.startswith(CHANGES) else "classify"


def _sent(scope: Scope) -> bytes | None:
    fields: dict[bytes, bytes] = dict(scope["headers"])
    return bearer(fields.get(b"authorization", b"")) or fields.get(b"x-api-key")
