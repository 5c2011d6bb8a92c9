"""Requests that must be refused, each with the one answer that is right for it."""

from typing import NamedTuple


class Mistake(NamedTuple):
    """What is sent to `/classify`, and the status and code of the problem document that is due."""

    name: str
    body: bytes
    query: str
    status: int
    code: str


def of(photo: bytes) -> list[Mistake]:
    """The mistakes that clients make with a photo."""
    return [
        Mistake("no image", b"not an image", "", 415, "not_an_image"),
        Mistake("cut off", photo[: len(photo) // 2], "", 422, "broken_image"),
        Mistake("empty", b"", "", 400, "empty_body"),
        Mistake("unknown model", photo, "?model=none", 404, "unknown_model"),
        Mistake("bad parameter", photo, "?top_k=0", 400, "invalid_parameter"),
    ]
