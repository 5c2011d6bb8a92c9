"""Request bodies, and the images in them: the body itself, or the files of a multipart form or a zip."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import NamedTuple, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.errors import Code, ServiceError
from server.http import archives, forms
from server.http.archives import File
from server.http.fields import field
from server.serving.buffers import Buffers
from server.time_limit import TimeLimit

_DEFLATED = 8
"""The compression method in the first byte of zlib's header (RFC 1950, 2.2)."""

Read = TypeVar("Read")
Count = Callable[[int], None]
"""Called with the number of bytes newly held in memory."""


class Image(NamedTuple):
    """An upload of one image."""

    content: bytes
    """The compressed image."""
    fields: Sequence[tuple[str, str]] = ()
    """Fields of the form that contained it, if it came in one."""


class Images(NamedTuple):
    """An upload of several."""

    files: list[File]
    fields: Sequence[tuple[str, str]] = ()


class Uploads:
    """Reads uploads within limits for each and for all together. Bytes count as buffered until their block ends."""

    def __init__(self, buffers: Buffers, max_body_bytes: int, body_timeout_s: float) -> None:
        self._buffers = buffers
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    def image(self, request: Request) -> AbstractAsyncContextManager[Image]:
        """The compressed image of a request.

        Raises:
            ServiceError: EMPTY_BODY, MALFORMED_MULTIPART, or as `body`.
            ClientDisconnect: the client left before the last byte.
        """
        return _Upload(self._buffers, partial(self._image, request))

    def files(self, request: Request, at_most: int) -> AbstractAsyncContextManager[Images]:
        """The files of a form or a zip.

        Raises:
            ServiceError: EMPTY_BODY, MALFORMED_MULTIPART, INVALID_REQUEST if the body is neither, BODY_TOO_LARGE if
                there are too many files, or more bytes once decompressed than an upload may have, or as `body`.
            ClientDisconnect: the client left before the last byte.
        """
        return _Upload(self._buffers, partial(self._files, request, at_most))

    def body(self, request: Request) -> AbstractAsyncContextManager[bytes]:
        """The body of a request, without its content encoding.

        Raises:
            ServiceError: BODY_TOO_LARGE, counted after decompression, BODY_TIMEOUT, UNSUPPORTED_ENCODING,
                INVALID_REQUEST if the body cannot be decompressed, or QUEUE_FULL if all uploads together would take
                too much memory.
            ClientDisconnect: the client left before the last byte.
        """
        return _Upload(self._buffers, partial(self._body, request))

    async def _image(self, request: Request, count: Count) -> Image:
        image = _image(field(request.scope, b"content-type"), await self._body(request, count))
        if not image.content:
            detail = "there is no image: send its bytes as the body, or as a file of a form"
            raise ServiceError(Code.EMPTY_BODY, detail)
        return image

    async def _files(self, request: Request, at_most: int, count: Count) -> Images:
        body = await self._body(request, count)
        boundary = forms.boundary_of(field(request.scope, b"content-type"))
        fields: Sequence[tuple[str, str]] = ()
        if not body:
            raise ServiceError(Code.EMPTY_BODY, "the request has no images; send files in a form, or a zip")
        if boundary is None:
            files = await asyncio.to_thread(archives.files, body)
        else:
            sent, fields = forms.read(body, boundary, at_most)
            if len(sent) == 1 and archives.is_zip(sent[0].content):
                files = await asyncio.to_thread(archives.files, sent[0].content)
            else:
                files = [File.of(*file) for file in sent]
        if not files:
            raise ServiceError(Code.EMPTY_BODY, "the upload has no files")
        if len(files) > at_most:
            raise ServiceError(Code.BODY_TOO_LARGE, f"one request may have at most {at_most} images")
        size = sum(file.size for file in files)
        count(size)
        self._buffers.check(size)
        return Images(files, fields)

    async def _body(self, request: Request, count: Count) -> bytes:
        encoding = (field(request.scope, b"content-encoding") or "identity").strip().lower()
        encoded = None if encoding == "identity" else _Encoded(encoding)
        self._buffers.check(int(field(request.scope, b"content-length") or 0))
        size, more = 0, True
        gathered: list[bytes] = []
        try:
            with TimeLimit(self._body_timeout_s):
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    if encoded:
                        chunk = await encoded.decode(chunk, self._max_body_bytes + 1 - size)
                    size += len(chunk)
                    count(len(chunk))
                    self._buffers.check(size)
                    gathered.append(chunk)
        except TimeoutError:
            detail = f"the upload took longer than {self._body_timeout_s:g} seconds"
            raise ServiceError(Code.BODY_TIMEOUT, detail) from None
        if encoded:
            encoded.end()
        return b"".join(gathered)


class _Upload(AbstractAsyncContextManager[Read]):
    """One upload, and how much memory it takes. Not a generator, as every request makes one."""

    __slots__ = ("_buffers", "_read", "_size")

    def __init__(self, buffers: Buffers, read: Callable[[Count], Awaitable[Read]]) -> None:
        self._buffers = buffers
        self._read = read
        self._size = 0

    async def __aenter__(self) -> Read:
        try:
            return await self._read(self._count)
        except BaseException:
            self._buffers.add(-self._size)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._buffers.add(-self._size)

    def _count(self, size: int) -> None:
        self._size += size
        self._buffers.add(size)


class _Encoded:
    """Decodes a body's content encoding chunk by chunk, so that it never holds more than the limit."""

    def __init__(self, name: str) -> None:
        if name not in ("gzip", "x-gzip", "deflate"):
            detail = f"content encoding {name[:100]!r} is not understood: send gzip, deflate, or the bytes as they are"
            raise ServiceError(Code.UNSUPPORTED_ENCODING, detail)
        self._is_deflate = name == "deflate"
        self._zlib: zlib._Decompress | None = None

    async def decode(self, chunk: bytes, limit: int) -> bytes:
        """At most `limit` decoded bytes of the chunk; if it returns that many, there may have been more."""
        if not chunk:
            return chunk
        if self._zlib is None:
            self._zlib = zlib.decompressobj(self._window_bits(chunk[0]))
        try:
            decoded = await asyncio.to_thread(self._zlib.decompress, chunk, limit)
        except zlib.error as error:
            raise ServiceError(Code.INVALID_REQUEST, f"the body cannot be decompressed: {error}") from None
        if self._zlib.unused_data:
            raise ServiceError(Code.INVALID_REQUEST, "bytes follow the end of the compressed body")
        return decoded

    def _window_bits(self, first: int) -> int:
        """`wbits` for zlib, which also says whose header and trailer to expect: gzip's, zlib's own, or none.

        RFC 9110, 8.4.1.2: "deflate" means zlib's, but some clients send raw data; the `first` byte tells.
        """
        if not self._is_deflate:
            return zlib.MAX_WBITS | 16
        return zlib.MAX_WBITS if first & 15 == _DEFLATED else -zlib.MAX_WBITS

    def end(self) -> None:
        """Check that the compressed data is complete; call after the last chunk."""
        if not (self._zlib and self._zlib.eof):
            raise ServiceError(Code.INVALID_REQUEST, "the compressed body ends early")


def _image(content_type: str | None, body: bytes) -> Image:
    """The body, or its only file if it is a form."""
    boundary = forms.boundary_of(content_type)
    if boundary is None:
        return Image(body)
    files, fields = forms.read(body, boundary, max_files=1)
    if len(files) != 1:
        raise ServiceError(Code.MALFORMED_MULTIPART, f"the form has {len(files)} files; send one: -F file=@photo.jpg")
    return Image(files[0].content, fields)
