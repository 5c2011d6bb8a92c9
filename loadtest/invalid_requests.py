"""Requests that must be refused, each with its one right answer."""

from typing import NamedTuple


class InvalidRequest(NamedTuple):
    """A request to `/classify`, and the status and code of the problem document that it must get."""

    name: str
    body: bytes
    query: str
    status: int
    code: str


def of(photo: bytes) -> list[InvalidRequest]:
    """Mistakes that clients make, demonstrated on this photo."""
    return [
        InvalidRequest("no image", b"not an image", "", 415, "not_an_image"),
        InvalidRequest("cut off", photo[: len(photo) // 2], "", 422, "broken_image"),
        InvalidRequest("empty", b"", "", 400, "empty_body"),
        InvalidRequest("unknown model", photo, "?model=none", 404, "unknown_model"),
        InvalidRequest("bad parameter", photo, "?top_k=0", 400, "invalid_parameter"),
    ]
