"""API keys over HTTP: who may go on to the routes. Where the server has no keys, this is not there at all."""

import time

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http import page
from server.http.problems import STATUS, problem
from server.keys import Keys, RefusedError, RoleName, bearer
from server.serving.service import Service

OPEN = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Probes are asked by machines that hold no key, and tell nothing else."""
CHANGES = "/v2/repository/models/"
"""What loads and unloads models is below."""


class KeyCheck:
    """Lets a request through whose key may do what it asks for, and refuses the others before their body is read."""

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
        """The role a key needs for this; None: no key is needed. The path is the one that routes are found by."""
        if path in OPEN or page.is_file(method, path):
            return None
        if path == "/metrics":
            return None if self._metrics_role == "none" else self._metrics_role
        return "admin" if path.startswith(CHANGES) else "classify"


def _sent(scope: Scope) -> bytes | None:
    fields: dict[bytes, bytes] = dict(scope["headers"])
    return bearer(fields.get(b"authorization", b"")) or fields.get(b"x-api-key")
