"""An id for each request: the client's own if it sent a usable one, so that its logs and ours can be joined."""

import random
import re

from fastapi import Request

from server.http.fields import field

HEADER = "X-Request-ID"
_FIELD = HEADER.lower().encode()
_USABLE = re.compile(r"[A-Za-z0-9_.:/+=@-]{1,128}")


def request_id_of(request: Request) -> str:
    """The request's id; made on the first call, then always the same."""
    state: dict[str, str] = request.scope.setdefault("state", {})
    found = state.get("request_id")
    if found is None:
        sent = field(request.scope, _FIELD) or ""
        found = state["request_id"] = sent if _USABLE.fullmatch(sent) else f"{random.getrandbits(128):032x}"
    return found
