"""An id for each request: the client's own, where it sent a usable one, so that its logs and ours can be joined."""

import random
import re

from fastapi import Request

HEADER = "X-Request-ID"
_USABLE = re.compile(r"[A-Za-z0-9_.:/+=@-]{1,128}")


def request_id_of(request: Request) -> str:
    """The same id each time it is asked for one request."""
    if not hasattr(request.state, "request_id"):
        sent = request.headers.get(HEADER, "")
        request.state.request_id = sent if _USABLE.fullmatch(sent) else f"{random.getrandbits(128):032x}"
    request_id: str = request.state.request_id
    return request_id
