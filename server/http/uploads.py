"""Bodies of requests, and the images in them: the body itself, the files of a multipart form or of a zip."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import Code, ServiceError
from server.http import archives
from server.http.archives import File
from server.serving.buffers import Buffers

MAX_PARTS = 100
"""Each costs the event loop some microseconds, and one is needed for each image."""


class Uploads:
    """Reads uploads, each and all together within limits."""

    def __init__(self, buffers: Buffers, max_body_bytes: int, body_timeout_s: float) -> None:
        self._buffers = buffers
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    @asynccontextmanager
    async def image(self, request: Request) -> AsyncGenerator[bytes]:
        """The compressed image of a request; it counts as buffered until the block ends.

        Raises:
            ServiceError: EMPTY_BODY, MALFORMED_MULTIPART, or as `body`.
            ClientDisconnect: the client left before the last byte.
        """
        async with self.body(request) as body:
            yield _image(request.headers.get("content-type"), body)

    @asynccontextmanager
    async def files(self, request: Request, at_most: int) -> AsyncGenerator[list[File]]:
        """The files of a form or a zip; all they hold counts as buffered until the block ends.

        Raises:
            ServiceError: EMPTY_BODY, MALFORMED_MULTIPART, INVALID_REQUEST where it is none of these, BODY_TOO_LARGE
                where there are too many, or more bytes than an upload may have once decompressed, or as `body`.
            ClientDisconnect: the client left before the last byte.
        """
        async with AsyncExitStack() as stack:
            body = await stack.enter_async_context(self.body(request))
            boundary = _boundary(request.headers.get("content-type"))
            if not body:
                raise ServiceError(Code.EMPTY_BODY, "there are no images: send files of a form, or a zip")
            if boundary is None:
                files = await asyncio.to_thread(archives.files, body)
            else:
                files = [
                    File.of(name, content) for name, content in _files_of_form(body, boundary, at_most + MAX_PARTS)
                ]
            if not files:
                raise ServiceError(Code.EMPTY_BODY, "the upload has no files")
            if len(files) > at_most:
                raise ServiceError(Code.BODY_TOO_LARGE, f"one request may have at most {at_most} images")
            stack.enter_context(self._buffers.held(sum(file.size for file in files)))
            yield files

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncGenerator[bytes]:
        """The body of a request, without its content encoding; it counts as buffered until the block ends.

        Raises:
            ServiceError: BODY_TOO_LARGE, which counts what it decompresses to, BODY_TIMEOUT, UNSUPPORTED_ENCODING,
                INVALID_REQUEST where it cannot be decompressed, or QUEUE_FULL where all uploads together would take
                too much memory.
            ClientDisconnect: the client left before the last byte.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        encoded = None if encoding == "identity" else _Encoded(encoding)
        self._buffers.check(int(request.headers.get("content-length", 0)))
        async with self._gathered(request.stream(), encoded, self._body_timeout_s) as body:
            yield body

    @asynccontextmanager
    async def _gathered(
        self, chunks: AsyncIterable[bytes], encoded: "_Encoded | None", timeout_s: float | None = None
    ) -> AsyncGenerator[bytes]:
        """All chunks, decoded; each counts as buffered from when it is there until the block ends."""
        size = 0
        gathered: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    async for chunk in chunks:
                        if encoded:
                            chunk = await encoded.decode(chunk, self._max_body_bytes + 1 - size)
                        size += len(chunk)
                        self._buffers.add(len(chunk))
                        self._buffers.check(size)
                        if chunk:
                            gathered.append(chunk)
            except TimeoutError:
                detail = f"the upload took longer than {timeout_s:g} seconds"
                raise ServiceError(Code.BODY_TIMEOUT, detail) from None
            if encoded:
                encoded.end()
            whole = b"".join(gathered)
            gathered.clear()  # they would be held beside it until the answer
            yield whole
        finally:
            self._buffers.add(-size)


class _Encoded:
    """A body's content encoding, taken off chunk by chunk, so that no more is ever there than may be."""

    def __init__(self, name: str) -> None:
        if name not in ("gzip", "x-gzip", "deflate"):
            detail = f"content encoding {name[:100]!r} is not understood: send gzip, deflate, or the bytes as they are"
            raise ServiceError(Code.UNSUPPORTED_ENCODING, detail)
        # 16: with gzip's header and trailer instead of zlib's, which "deflate" means by RFC 9110, 8.4.1.2.
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | (0 if name == "deflate" else 16))

    async def decode(self, chunk: bytes, limit: int) -> bytes:
        """At most `limit` bytes of what the chunk holds; where it is so many, there may have been more."""
        if not chunk:
            return chunk
        try:
            decoded = await asyncio.to_thread(self._zlib.decompress, chunk, limit)
        except zlib.error as error:
            raise ServiceError(Code.INVALID_REQUEST, f"the body cannot be decompressed: {error}") from None
        if self._zlib.unused_data:
            raise ServiceError(Code.INVALID_REQUEST, "bytes follow the end of the compressed body")
        return decoded

    def end(self) -> None:
        """No chunk follows."""
        if not self._zlib.eof:
            raise ServiceError(Code.INVALID_REQUEST, "the compressed body ends early")


def _boundary(content_type: str | None) -> bytes | None:
    """Where it is a form; None where not. Any other content type is ignored: the bytes tell."""
    kind, options = parse_options_header(content_type)
    return options.get(b"boundary", b"") if kind == b"multipart/form-data" else None


def _image(content_type: str | None, body: bytes) -> bytes:
    """The body, or the one file of it where it is a form."""
    boundary = _boundary(content_type)
    image = body if boundary is None else _file_of_form(body, boundary)
    if not image:
        raise ServiceError(Code.EMPTY_BODY, "there is no image: send its bytes as the body, or as a file of a form")
    return image


def _file_of_form(body: bytes, boundary: bytes) -> bytes:
    """The content of the only file of a form."""
    files = _files_of_form(body, boundary, MAX_PARTS)
    if len(files) != 1:
        raise ServiceError(Code.MALFORMED_MULTIPART, f"the form has {len(files)} files; send one: -F file=@photo.jpg")
    return files[0][1]


def _files_of_form(body: bytes, boundary: bytes, max_parts: int) -> list[tuple[str, bytes]]:
    """Name and content of each part that has a file name; where none has, of each that is no text.

    Some clients send a file without a name where they have it in memory.
    """
    parts = _parts(body, boundary, max_parts)
    named = [(part.filename, b"".join(part.content)) for part in parts if part.filename is not None]
    return named or [("", content) for part in parts if not _is_text(content := b"".join(part.content))]


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


class _Part:
    """One part of a form, as far as it has been read."""

    def __init__(self) -> None:
        self.filename: str | None = None
        self.content: list[bytes] = []


def _parts(body: bytes, boundary: bytes, max_parts: int) -> list[_Part]:
    """All parts of a form.

    Raises:
        ServiceError: MALFORMED_MULTIPART.
    """
    if not boundary:
        raise ServiceError(Code.MALFORMED_MULTIPART, "the form's content type names no boundary")
    if body.count(b"--" + boundary) > max_parts:
        raise ServiceError(Code.MALFORMED_MULTIPART, f"the form has more than {max_parts} parts")
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
        options = parse_options_header(value)[1] if name == b"content-disposition" else {}
        if b"filename" in options:
            parts[-1].filename = options[b"filename"].decode("utf-8", "replace")

    def on_part_data(data: bytes, start: int, end: int) -> None:
        parts[-1].content.append(data[start:end])

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
