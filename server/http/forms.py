"""Parses forms (multipart/form-data) into files and other fields."""

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import Code, ServiceError

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # the response says what is wrong with a form

MAX_PARTS = 100
"""Parts allowed beyond one per image: each costs the event loop some microseconds."""


class FormFile(NamedTuple):
    """A part with a file name, which may be empty."""

    name: str
    content: bytes


class Form(NamedTuple):
    """A parsed form."""

    files: list[FormFile]
    fields: Sequence[tuple[str, str]]
    """Names and values."""


def boundary_of(content_type: str | None) -> bytes | None:
    """The form's boundary, empty if missing; None: not a form. Other content types are ignored: the bytes decide."""
    kind, options = parse_options_header(content_type)
    return options.get(b"boundary", b"") if kind == b"multipart/form-data" else None


def read(body: bytes, boundary: bytes, max_files: int) -> Form:
    """The files and fields of a form of at most `max_files` + MAX_PARTS parts.

    Some clients omit the file name of a file they have in memory. So if no part has one, each part that is not text
    counts as a file. All other parts are fields; of one that is not text, the value is only good for an error message.

    Raises:
        ServiceError: MALFORMED_MULTIPART.
    """
    parts = _parts(body, boundary, max_files + MAX_PARTS)
    files = [part for part in parts if part.filename is not None] or [part for part in parts if part.text is None]
    return Form(
        [FormFile(part.filename or "", part.content) for part in files],
        [(part.name, part.quotable if part.text is None else part.text) for part in parts if part not in files],
    )


class _Part:
    """One part, as far as it has been read."""

    def __init__(self) -> None:
        self.name = ""
        self.filename: str | None = None
        self.chunks: list[bytes] = []

    @property
    def content(self) -> bytes:
        return b"".join(self.chunks)

    @cached_property
    def text(self) -> str | None:
        """The content as text; None: it is not text."""
        try:
            text = self.content.decode()
        except UnicodeDecodeError:
            return None
        return None if "\0" in text else text

    @property
    def quotable(self) -> str:
        """The beginning of the content, with replacements for what is not text."""
        return self.content[:100].decode("utf-8", "replace")


def _parts(body: bytes, boundary: bytes, max_parts: int) -> list[_Part]:
    """All parts of a form.

    Raises:
        ServiceError: MALFORMED_MULTIPART.
    """
    if not boundary:
        raise ServiceError(Code.MALFORMED_MULTIPART, "the form's content type has no boundary")
    delimiter = b"--" + boundary
    if body.count(delimiter) > max_parts:
        raise ServiceError(Code.MALFORMED_MULTIPART, f"the form has more than {max_parts} parts")
    if not body.startswith(delimiter):  # RFC 2046, 5.1.1: what is before the first part is ignored
        start = body.find(b"\r\n" + delimiter)
        if start < 0:
            detail = "the boundary in the content type is not that of the form: have the client make both"
            raise ServiceError(Code.MALFORMED_MULTIPART, detail)
        body = body[start + 2 :]
    parts: list[_Part] = []
    names: list[bytes] = []
    values: list[bytes] = []
    ended = False

    def on_part_begin() -> None:
        parts.append(_Part())

    def on_header_field(data: bytes, start: int, end: int) -> None:
        names.append(data[start:end])

    def on_header_value(data: bytes, start: int, end: int) -> None:
        values.append(data[start:end])

    def on_header_end() -> None:
        name, value = b"".join(names).lower(), b"".join(values)
        names.clear()
        values.clear()
        if name == b"content-disposition":
            _, options = parse_options_header(value)
            parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            if b"filename" in options:
                parts[-1].filename = options[b"filename"].decode("utf-8", "replace")

    def on_part_data(data: bytes, start: int, end: int) -> None:
        parts[-1].chunks.append(data[start:end])

    def on_end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": on_part_begin,
                "on_header_field": on_header_field,
                "on_header_value": on_header_value,
                "on_header_end": on_header_end,
                "on_part_data": on_part_data,
                "on_end": on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise ServiceError(Code.MALFORMED_MULTIPART, f"the form cannot be read: {error}") from None
    if not ended:
        raise ServiceError(Code.MALFORMED_MULTIPART, "the form ends before its closing boundary")
    return parts
