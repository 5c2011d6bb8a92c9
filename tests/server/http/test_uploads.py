"""Uploads, message by message, as an ASGI server delivers them."""

import asyncio
import gzip
import zlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import httpx
import pytest
from fastapi import Request
from hypothesis import assume, given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from server.errors import Code, ServiceError
from server.http.uploads import Uploads
from server.serving.buffers import Buffers

LIMIT = 1000
TOGETHER = 1500
FOREVER_S = 10.0
"""Only a failing test waits this long."""
BOUNDARY_CHARACTERS = "0123456789abcXYZ'()+_,-./:=?"
"""Some of those that RFC 2046 allows."""


def make_uploads(body_timeout_s: float = FOREVER_S) -> Uploads:
    return Uploads(Buffers(LIMIT, TOGETHER), LIMIT, body_timeout_s)


def request(
    chunks: Iterable[bytes],
    content_type: str | None = None,
    *,
    length: int | None = None,
    end: str = "complete",
    encoding: str | None = None,
) -> Request:
    """A request whose body comes in these chunks and is then `complete`, `broken off`, or `stalled` for ever."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if end == "complete":
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    elif end == "broken off":
        messages.append({"type": "http.disconnect"})
    remaining = iter(messages)

    async def receive() -> dict[str, Any]:
        message = next(remaining, None)
        if message is None:
            await asyncio.Event().wait()
            raise AssertionError
        return message

    headers = [(b"content-type", content_type.encode("latin-1"))] if content_type is not None else []
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    if encoding is not None:
        headers.append((b"content-encoding", encoding.encode()))
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def received(uploads: Uploads, upload: Request) -> bytes:
    async with uploads.image(upload) as image:
        return image.content


async def assert_nothing_buffered(uploads: Uploads) -> None:
    """Check that as many bytes as may be in memory at one time still fit."""
    half = [b"x" * (TOGETHER // 2)]
    async with uploads.image(request(half)) as first, uploads.image(request(half)) as second:
        assert len(first.content) + len(second.content) == TOGETHER


def read(chunks: Iterable[bytes], content_type: str | None = None, *, length: int | None = None) -> bytes:
    """The image that a fresh `Uploads` reads; checks that nothing stays buffered, even after an error."""

    async def scenario() -> bytes:
        uploads = make_uploads()
        try:
            return await received(uploads, request(chunks, content_type, length=length))
        finally:
            await assert_nothing_buffered(uploads)

    return asyncio.run(scenario())


def refused(chunks: Iterable[bytes], content_type: str | None = None, *, length: int | None = None) -> Code:
    with pytest.raises(ServiceError) as error:
        read(chunks, content_type, length=length)
    return error.value.code


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="a.jpg"', *more: str) -> bytes:
    head = "\r\n".join([f"Content-Disposition: {disposition}", *more])
    return head.encode() + b"\r\n\r\n" + content


def form(boundary: str, *parts: bytes) -> bytes:
    line = b"--" + boundary.encode()
    return b"".join(line + b"\r\n" + one + b"\r\n" for one in parts) + line + b"--\r\n"


FIELD = part(b"a text", 'form-data; name="comment"')


@pytest.mark.parametrize("content_type", [None, "", "image/jpeg", "application/x-www-form-urlencoded", "nonsense;;="])
def test_a_body_is_the_image_whatever_its_content_type(content_type: str | None) -> None:
    assert read([b"\xff\xd8", b"", b"\x00rest"], content_type) == b"\xff\xd8\x00rest"


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=b1",
        'multipart/form-data; boundary="b1"',
        "Multipart/Form-Data; BOUNDARY=b1",
        'multipart/form-data; charset=utf-8; boundary="b1"',
    ],
)
def test_the_boundary_may_be_written_in_any_legal_way(content_type: str) -> None:
    assert read([form("b1", part(b"picture"))], content_type) == b"picture"


@pytest.mark.parametrize(
    "parts",
    [
        [part(b"picture")],
        [FIELD, part(b"picture")],
        [part(b"picture"), FIELD],
        [FIELD, FIELD, part(b"picture"), FIELD],
        [part(b"picture", 'form-data; name="other"; filename=""')],
        [part(b"picture", 'form-data; name="x"; filename="a;b\\"c.jpg"', "Content-Type: image/jpeg")],
        [b"Content-Type: image/jpeg\r\ncontent-DISPOSITION: form-data; filename=a\r\n\r\npicture"],
    ],
)
def test_the_only_file_of_a_form_is_the_image(parts: Sequence[bytes]) -> None:
    assert read([form("b1", *parts)], "multipart/form-data; boundary=b1") == b"picture"


def test_what_a_real_client_sends_is_read() -> None:
    sent = httpx.Request(
        "POST", "http://server", data={"a": "1"}, files={"file": ("\u00e4 b.png", b"\x89PNG\r\n", "image/png")}
    )
    assert read([sent.read()], sent.headers["content-type"]) == b"\x89PNG\r\n"


BYTES = b"\x89PNG\r\n"
UNNAMED = part(BYTES, 'form-data; name="file"', "Content-Type: application/octet-stream")


@pytest.mark.parametrize(
    "parts",
    [
        [UNNAMED],
        [part(BYTES, 'form-data; name="file"')],
        [part(b"GIF89a\x01\0\x01\0", 'form-data; name="image"')],
        [FIELD, UNNAMED, part("\u00e4 text".encode(), 'form-data; name="title"')],
    ],
)
def test_where_no_part_has_a_file_name_the_one_that_is_no_text_is_the_image(parts: Sequence[bytes]) -> None:
    assert read([form("b1", *parts)], "multipart/form-data; boundary=b1") in (BYTES, b"GIF89a\x01\0\x01\0")


def test_a_file_name_decides_where_there_is_one() -> None:
    body = form("b1", UNNAMED, part(b"picture"))
    assert read([body], "multipart/form-data; boundary=b1") == b"picture"


@pytest.mark.parametrize(
    "body",
    [
        form("b1"),
        form("b1", UNNAMED, UNNAMED),
        form("b1", FIELD),
        form("b1", part(b"one"), part(b"two")),
        form("b1", part(b""), part(b"two")),
        form("other", part(b"picture")),
        form("b1", b"no header\r\n\r\npicture"),
        form("b1", part(b"picture"))[:-4],
        form("b1", part(b"picture"))[:-8],
        form("b1", part(b"picture"))[:20],
        b"picture",
    ],
)
def test_a_form_without_exactly_one_whole_file_is_malformed(body: bytes) -> None:
    assert refused([body], "multipart/form-data; boundary=b1") is Code.MALFORMED_MULTIPART


@pytest.mark.parametrize("before", [b"\r\n", b"This is a message of several parts.\r\n", b"--b\r\n\r\n"])
def test_what_is_before_the_first_part_of_a_form_is_ignored(before: bytes) -> None:
    body = before + form("b1", part(b"picture")) + b"and what comes after the last"
    assert read([body], "multipart/form-data; boundary=b1") == b"picture"


def test_a_boundary_that_is_not_that_of_the_form_is_told_to_the_client_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for sent in (form("other", part(b"picture")), form("b1", part(b"picture")).replace(b"\r\n", b"\n")):
        with pytest.raises(ServiceError) as error:
            read([sent], "multipart/form-data; boundary=b1")
        assert error.value.code is Code.MALFORMED_MULTIPART
    with pytest.raises(ServiceError, match="boundary in the content type is not that of the form"):
        read([form("other", part(b"picture"))], "multipart/form-data; boundary=b1")
    assert caplog.text == ""


@given(cut=st.integers(0, len(form("b1", FIELD, part(b"picture"))) - 3))
def test_a_truncated_form_is_never_taken_for_an_image(cut: int) -> None:
    body = form("b1", FIELD, part(b"picture"))[:cut]
    assert refused([body], "multipart/form-data; boundary=b1") in (Code.MALFORMED_MULTIPART, Code.EMPTY_BODY)


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", f"multipart/form-data; boundary={'x' * 300}"],
)
def test_a_form_without_a_usable_boundary_is_malformed(content_type: str) -> None:
    for boundary in ("b1", "", "x" * 300):
        assert refused([form(boundary, part(b"picture"))], content_type) is Code.MALFORMED_MULTIPART


@pytest.mark.parametrize("chunks", [[], [b""], [b"", b""]])
def test_no_bytes_are_an_empty_body(chunks: Sequence[bytes]) -> None:
    assert refused(chunks) is Code.EMPTY_BODY


def test_an_empty_file_is_an_empty_body() -> None:
    assert refused([form("b1", part(b""))], "multipart/form-data; boundary=b1") is Code.EMPTY_BODY


def chunked(data: st.DataObject, body: bytes) -> list[bytes]:
    """The body, cut at random places."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


@given(data=st.data(), body=st.binary(min_size=1, max_size=LIMIT))
def test_any_bytes_survive_as_a_body_in_any_chunks(data: st.DataObject, body: bytes) -> None:
    assert read(chunked(data, body)) == body


@given(
    data=st.data(),
    boundary=st.text(BOUNDARY_CHARACTERS, min_size=1, max_size=70),
    before=st.booleans(),
    after=st.booleans(),
)
def test_any_bytes_survive_as_a_file_though_they_look_like_boundaries(
    data: st.DataObject, boundary: str, before: bool, after: bool
) -> None:
    delimiter = b"\r\n--" + boundary.encode()
    pieces = [
        b"\r",
        b"\n",
        b"-",
        b"--",
        b"\r\n--",
        boundary.encode(),
        delimiter[:-1],
        delimiter[1:],
        b"Content-Type: a",
    ]
    content = b"".join(data.draw(st.lists(st.sampled_from(pieces) | st.binary(max_size=4), min_size=1, max_size=9)))
    assume(content)
    assume(delimiter not in b"\r\n" + content)
    body = form(boundary, *[FIELD] * before, part(content), *[FIELD] * after)
    assume(len(body) <= LIMIT)
    assert read(chunked(data, body), f'multipart/form-data; boundary="{boundary}"') == content


@given(
    content_type=st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=30)
    | st.sampled_from(["multipart/form-data; boundary=b", 'multipart/form-data; boundary="', "multipart/form-data;=;"]),
    pieces=st.lists(
        st.sampled_from(
            [b"--b", b"\r\n", b"\n", b"--", b":", b"Content-Disposition: form-data; filename=a", b"picture", b'"', b";"]
        )
        | st.binary(max_size=5),
        max_size=12,
    ),
)
def test_no_upload_whatever_makes_more_than_an_image_or_an_error_with_a_code(
    content_type: str, pieces: list[bytes]
) -> None:
    try:
        assert read(pieces, content_type)
    except ServiceError as error:
        code = error.code
        assert code in (Code.MALFORMED_MULTIPART, Code.EMPTY_BODY)


def test_the_limit_is_the_largest_upload() -> None:
    assert read([b"x" * LIMIT], length=LIMIT) == b"x" * LIMIT
    assert refused([b"x" * (LIMIT + 1)], length=LIMIT + 1) is Code.BODY_TOO_LARGE


def test_an_upload_that_says_that_it_is_too_large_is_refused_before_it_is_read() -> None:
    async def scenario() -> None:
        uploads = make_uploads()
        with pytest.raises(ServiceError) as error:
            await received(uploads, request([], length=LIMIT + 1, end="stalled"))
        assert error.value.code is Code.BODY_TOO_LARGE
        await assert_nothing_buffered(uploads)

    asyncio.run(asyncio.wait_for(scenario(), FOREVER_S))


def test_an_upload_without_a_length_is_refused_at_the_first_byte_too_many() -> None:
    async def scenario() -> None:
        uploads = make_uploads()
        with pytest.raises(ServiceError) as error:
            await received(uploads, request([b"x" * LIMIT, b"x"], end="stalled"))
        assert error.value.code is Code.BODY_TOO_LARGE
        await assert_nothing_buffered(uploads)

    asyncio.run(asyncio.wait_for(scenario(), FOREVER_S))


async def decompressed(uploads: Uploads, chunks: Iterable[bytes], encoding: str) -> bytes | Code:
    """The bytes of a body in a content encoding, or the code of its refusal."""
    try:
        return await received(uploads, request(chunks, encoding=encoding))
    except ServiceError as error:
        return error.code
    finally:
        await assert_nothing_buffered(uploads)


@pytest.mark.parametrize(
    ("encoding", "chunks", "outcome"),
    [
        ("gzip", [gzip.compress(b"image")], b"image"),
        ("X-Gzip", [bytes([byte]) for byte in gzip.compress(b"image")], b"image"),
        ("deflate", [zlib.compress(b"image")], b"image"),
        ("deflate", [bytes([byte]) for byte in zlib.compress(b"image" * 100)], b"image" * 100),
        ("deflate", [zlib.compress(b"image", wbits=-15)], b"image"),
        ("deflate", [bytes([byte]) for byte in zlib.compress(b"image" * 100, wbits=-15)], b"image" * 100),
        ("deflate", [zlib.compress(b"image", 0, wbits=-15)], b"image"),
        ("deflate", [zlib.compress(b"image", wbits=-15)[:-1]], Code.INVALID_REQUEST),
        ("deflate", [], Code.INVALID_REQUEST),
        ("identity", [b"image"], b"image"),
        ("gzip", [gzip.compress(b"x" * LIMIT)], b"x" * LIMIT),
        ("gzip", [gzip.compress(b"x" * (LIMIT + 1))], Code.BODY_TOO_LARGE),
        ("deflate", [zlib.compress(b"x" * 10_000_000)], Code.BODY_TOO_LARGE),
        ("gzip", [gzip.compress(b"image")[:-1]], Code.INVALID_REQUEST),
        ("gzip", [], Code.INVALID_REQUEST),
        ("gzip", [gzip.compress(b"image"), b"more"], Code.INVALID_REQUEST),
        ("deflate", [b"image"], Code.INVALID_REQUEST),
        ("gzip, gzip", [b"image"], Code.UNSUPPORTED_ENCODING),
        ("br", [b"image"], Code.UNSUPPORTED_ENCODING),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_content_encoding_is_taken_off_within_the_limits(
    encoding: str, chunks: Sequence[bytes], outcome: bytes | Code
) -> None:
    assert asyncio.run(decompressed(make_uploads(), chunks, encoding)) == outcome


def test_a_length_that_lies_does_not_get_around_the_limit() -> None:
    assert refused([b"x" * LIMIT, b"x"], length=3) is Code.BODY_TOO_LARGE


def test_all_uploads_together_are_bounded_until_each_is_done_with() -> None:
    async def scenario() -> None:
        uploads = make_uploads()
        large = b"x" * (TOGETHER // 2 + 1)
        async with uploads.image(request([large])) as first:
            with pytest.raises(ServiceError) as error:
                await received(uploads, request([large]))
            assert error.value.code is Code.QUEUE_FULL
            assert await received(uploads, request([b"small"])) == b"small"
            assert first.content == large
        assert await received(uploads, request([large])) == large
        await assert_nothing_buffered(uploads)

    asyncio.run(scenario())


Scenario = Callable[[Uploads], Coroutine[Any, Any, None]]


async def fails_inside(uploads: Uploads) -> None:
    with pytest.raises(ZeroDivisionError):
        async with uploads.image(request([b"x" * LIMIT])):
            raise ZeroDivisionError


async def is_cancelled_while_reading(uploads: Uploads) -> None:
    reading = asyncio.create_task(received(uploads, request([b"x" * LIMIT], end="stalled")))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def is_cancelled_inside(uploads: Uploads) -> None:
    async def hold() -> None:
        async with uploads.image(request([b"x" * LIMIT])):
            inside.set()
            await asyncio.Event().wait()

    inside = asyncio.Event()
    holding = asyncio.create_task(hold())
    await inside.wait()
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding


async def is_broken_off(uploads: Uploads) -> None:
    with pytest.raises(ClientDisconnect):
        await received(uploads, request([b"x" * LIMIT], end="broken off"))


@pytest.mark.parametrize("ends", [fails_inside, is_cancelled_while_reading, is_cancelled_inside, is_broken_off])
def test_nothing_stays_buffered_when_an_upload(ends: Scenario) -> None:
    async def scenario() -> None:
        uploads = make_uploads()
        await ends(uploads)
        await assert_nothing_buffered(uploads)

    asyncio.run(scenario())


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time only `advance` moves."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s

    async def advance(self, seconds: float) -> None:
        """Move the time, and let everything that can run do so, before and after."""
        await self._settle()
        self.now_s += seconds
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


BODY_TIMEOUT_S = 30.0


def test_an_upload_that_stalls_is_given_up_and_nothing_stays_buffered() -> None:
    async def scenario(clock: Clock) -> None:
        uploads = make_uploads(BODY_TIMEOUT_S)
        reading = asyncio.create_task(received(uploads, request([b"x" * LIMIT], end="stalled")))
        await clock.advance(BODY_TIMEOUT_S - 0.1)
        assert not reading.done()
        await clock.advance(0.1)
        with pytest.raises(ServiceError) as error:
            await reading
        assert error.value.code is Code.BODY_TIMEOUT
        await assert_nothing_buffered(uploads)

    clock = Clock()
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(scenario(clock))


def test_the_time_limit_ends_with_the_last_byte() -> None:
    async def scenario(clock: Clock) -> None:
        async with make_uploads(BODY_TIMEOUT_S).image(request([b"picture"])) as image:
            await clock.advance(2 * BODY_TIMEOUT_S)
            assert image.content == b"picture"

    clock = Clock()
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(scenario(clock))
