"""Requests whose parameters are in the body: JSON that holds images in Base64."""

import asyncio
import base64
from typing import TypeVar

import msgspec
from fastapi import Request

from server.errors import Code, ServiceError

IN_THREAD_BYTES = 128 * 1024
"""Larger bodies, which take more than about 0.2 ms, are decoded in a thread."""

Kind = TypeVar("Kind", bound=msgspec.Struct)


def check_no_query(request: Request) -> None:
    """Refuse query parameters, which this route would ignore.

    Raises:
        ServiceError: INVALID_PARAMETER.
    """
    if request.scope["query_string"]:
        raise ServiceError(Code.INVALID_PARAMETER, "this path takes no query parameters; send them in the body")


async def decoded(body: bytes, kind: type[Kind]) -> Kind:
    """The body, decoded from JSON.

    Raises:
        ServiceError: EMPTY_BODY, INVALID_REQUEST.
    """
    if not body:
        raise ServiceError(Code.EMPTY_BODY, "the body is empty: send JSON")
    try:
        if len(body) > IN_THREAD_BYTES:
            return await asyncio.to_thread(msgspec.json.decode, body, type=kind)
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ServiceError(Code.INVALID_REQUEST, f"the request cannot be read: {error}") from None


async def images(texts: list[str]) -> list[bytes]:
    """The images, decoded from Base64.

    Raises:
        ServiceError: INVALID_REQUEST, a text is not Base64.
    """
    if sum(map(len, texts)) > IN_THREAD_BYTES:
        return await asyncio.to_thread(_images, texts)
    return _images(texts)


def _images(texts: list[str]) -> list[bytes]:
    try:
        return [base64.b64decode(text, validate=True) for text in texts]
    except ValueError:
        raise ServiceError(Code.INVALID_REQUEST, "an image must be a string of Base64") from None
