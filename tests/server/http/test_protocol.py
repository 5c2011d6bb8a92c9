"""What a client may send on a connection, over real sockets."""

import asyncio
import gc
import hashlib
import json
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import uvloop
from fastapi import Request, Response
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from server.http.disconnects import cancelled_when_gone
from server.http.protocol import MAX_FIELDS, MAX_HEAD_BYTES, MAX_PIPELINED, BoundedProtocol
from tests import tiny
from tests.server.running import PATIENCE_S, RunningServer, red_image, until


class Connection:
    def __init__(self, server: RunningServer, *parts: bytes) -> None:
        address = urlsplit(server.url)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S)
        for part in parts:
            self.socket.sendall(part)

    def answers(self, count: int = 1) -> list[tuple[int, dict[str, object]]]:
        """Status and document of each of the next answers."""
        with self.socket.makefile("rb") as stream:
            return [self._answer(stream) for _ in range(count)]

    @staticmethod
    def _answer(stream) -> tuple[int, dict[str, object]]:  # type: ignore[no-untyped-def]
        status = int(stream.readline().split()[1])
        fields = dict(line.decode().lower().rstrip().split(": ", 1) for line in iter(stream.readline, b"\r\n"))
        document = json.loads(stream.read(int(fields["content-length"])))
        if status >= 400:
            assert fields["content-type"] == "application/problem+json"
            assert fields["x-request-id"] == document["request_id"]
        return status, document

    def is_closed(self) -> bool:
        """Whether the server has closed it, once nothing is left to read; a reset counts as well."""
        try:
            return not self.socket.recv(1)
        except ConnectionResetError:
            return True

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def post(red: int, *fields: bytes, query: bytes = b"") -> bytes:
    image = red_image(red)
    head = [b"POST /classify" + query + b" HTTP/1.1", b"Host: here", *fields, b"Content-Length: %d" % len(image)]
    return b"\r\n".join([*head, b"", image])


NOTHING = hashlib.sha256().digest()


def digest_of(red: int) -> bytes:
    return hashlib.sha256(red_image(red)).digest()


def chunked(red: int) -> bytes:
    """A chunked upload, except for its trailers."""
    image = red_image(red)
    head = b"POST /classify HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"1\r\n%c\r\n" % byte for byte in image) + b"0\r\n"


def class_of(answer: tuple[int, dict[str, object]]) -> int:
    status, document = answer
    assert status == 200, document
    predictions: list[dict[str, int]] = document["predictions"]  # type: ignore[assignment]
    return predictions[0]["class_id"]


GET = b"GET /models HTTP/1.1\r\nHost: here\r\n"
TOO_LARGE = {
    "fields": GET + b"a: b\r\n" * (MAX_FIELDS + 1),
    "URL": b"GET /" + b"a" * MAX_HEAD_BYTES,
    "value": GET + b"a: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "trailers": chunked(5) + b"a: b\r\n" * (MAX_FIELDS + 1),
}
ENDLESS = {
    "name": GET,
    "value": GET + b"a: ",
    "chunk extension": chunked(5)[:-2] + b";",
    "second head": GET + b"\r\n" + GET,
}


@pytest.mark.parametrize("message", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_head_without_end_is_refused(server: RunningServer, message: bytes) -> None:
    with Connection(server, message) as connection:
        ((status, document),) = connection.answers()
        assert (status, document["code"]) == (431, "headers_too_large")
        assert connection.is_closed()


@pytest.mark.parametrize("start", ENDLESS.values(), ids=ENDLESS)
def test_a_line_without_end_ends_the_connection(server: RunningServer, start: bytes) -> None:
    endless = bytearray(b"a") * 2**28  # far more than socket buffers hold, or pass while a first request is answered
    with Connection(server, start) as connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        connection.socket.sendall(endless)


def test_large_heads_and_many_chunks_within_the_limits_are_served(server: RunningServer) -> None:
    many = [b"a: b"] * (MAX_FIELDS - 2)
    large = b"a: " + b"b" * (MAX_HEAD_BYTES - 200)
    trailed = chunked(3) + b"Content-Type: image/none\r\n\r\n"
    with Connection(server, post(1, *many), post(2, large), trailed) as connection:
        assert [class_of(answer) for answer in connection.answers(3)] == [1, 2, 3]


def test_trailers_are_no_headers() -> None:
    async def fields(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        await Response(hashlib.sha256(b"".join(name for name, _ in scope["headers"])).digest())(scope, receive, send)

    async def talk() -> None:
        async with InProcess(fields) as connection:
            sent = chunked(3) + b"X-Trailer: 1\r\n\r\n"
            assert await connection.answer(sent) == hashlib.sha256(b"hosttransfer-encoding").digest()

    uvloop.run(talk())


def test_an_answer_leaves_in_one_piece(server: RunningServer) -> None:
    with Connection(server) as connection:
        for red in range(50):
            connection.socket.sendall(post(red))
            head, _, body = connection.socket.recv(2**16).partition(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"


def test_a_head_that_no_body_follows_is_sent(server: RunningServer) -> None:
    with Connection(server, GET.replace(b"GET", b"HEAD") + b"\r\n") as connection:
        assert connection.socket.recv(2**16).startswith(b"HTTP/1.1 200 ")
        connection.socket.sendall(post(3))
        assert [class_of(answer) for answer in connection.answers()] == [3]


def test_a_head_does_not_wait_for_a_body_that_comes_later() -> None:
    async def talk() -> None:
        go_on = asyncio.Event()

        async def in_two_steps(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await go_on.wait()
            await send({"type": "http.response.body", "body": b"body"})

        async with InProcess(in_two_steps) as connection:
            connection.send(GET + b"\r\n")
            assert (await connection.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            go_on.set()
            assert await connection.read_until(b"\r\n0\r\n\r\n") == b"4\r\nbody\r\n0\r\n\r\n"

    uvloop.run(talk())


def test_an_answer_in_many_pieces_waits_for_who_reads_it() -> None:
    piece = bytes(10_000)
    most = 10_000  # together far more than socket buffers hold

    async def talk() -> None:
        pieces = iter(range(most))
        first_turn_is_over = asyncio.Event()

        async def talkative(_scope: Scope, _receive: Receive, send: Send) -> None:
            asyncio.get_running_loop().call_soon(first_turn_is_over.set)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})

        async with InProcess(talkative) as connection:
            connection.send(GET + b"\r\n")
            await first_turn_is_over.wait()  # until it had to wait
            assert len(list(pieces)) > most // 2

    uvloop.run(talk())


async def _checksum(scope: Scope, receive: Receive, send: Send) -> None:
    checksum = hashlib.sha256()
    async for part in Request(scope, receive).stream():
        checksum.update(part)
    await Response(checksum.digest())(scope, receive, send)


class HeldUp:
    """The same app, but it reads each body and then waits for a permit from `go_on`."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.go_on = asyncio.Semaphore(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        self.begun.release()
        await self.go_on.acquire()
        await Response(hashlib.sha256(body).digest())(scope, receive, send)


def allow(app: HeldUp, answers: int) -> None:
    for _ in range(answers):
        app.go_on.release()


@dataclass(eq=False)
class Timer:
    due_s: float
    callback: Callable[[], object]
    timers: list["Timer"]

    def cancel(self) -> None:
        if self in self.timers:
            self.timers.remove(self)


class Clock:
    """The event loop, except that its timers wait for `advance`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._now_s = 0.0
        self._timers: list[Timer] = []

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: object) -> Timer:
        timer = Timer(self._now_s + delay_s, partial(callback, *arguments), self._timers)
        self._timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self._now_s += seconds
        while due := [timer for timer in self._timers if timer.due_s <= self._now_s]:
            due[0].cancel()
            due[0].callback()

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)


class InProcess:
    """The protocol over a socket within this process, with its own clock."""

    def __init__(self, app: ASGIApp = _checksum) -> None:
        self._config = Config(app, lifespan="off", log_config=None)
        self._sent_bytes = self._heard_bytes = 0
        self._heard = asyncio.Event()
        self.writing_is_paused = asyncio.Event()
        self.lost = asyncio.Event()

    async def __aenter__(self) -> "InProcess":
        test = self

        class Heard(BoundedProtocol):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                test._heard_bytes += len(data)
                test._heard.set()

            def pause_writing(self) -> None:
                super().pause_writing()
                test.writing_is_paused.set()

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                test.lost.set()

        self.clock = Clock()
        ours, theirs = socket.socketpair()
        _, self.protocol = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: Heard(config=self._config, server_state=ServerState(), app_state={}, _loop=self.clock), theirs
        )
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    def send(self, *parts: bytes) -> None:
        self._writer.writelines(parts)
        self._sent_bytes += sum(len(part) for part in parts)

    async def deliver(self, *parts: bytes) -> None:
        """Send, and return once the protocol has received it."""
        self.send(*parts)
        while self._heard_bytes < self._sent_bytes:
            self._heard.clear()
            await self._heard.wait()

    async def read_until(self, end: bytes) -> bytes:
        return await self._reader.readuntil(end)

    def read_nothing(self) -> None:
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def answer(self, *parts: bytes) -> bytes:
        self.send(*parts)
        head = await self.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        return await self._reader.readexactly(hashlib.sha256().digest_size)

    @property
    def is_closing(self) -> bool:
        return self.protocol.transport.is_closing()

    async def is_closed(self) -> bool:
        """Whether the server has closed it, once nothing is left to read."""
        return not await self._reader.read(1)


@given(st.lists(st.binary(min_size=1, max_size=99).map(lambda some: some * 3000), max_size=9), st.booleans())
def test_a_body_arrives_as_it_was_sent(pieces: list[bytes], cut: bool) -> None:
    body = b"".join(pieces)
    head = b"POST / HTTP/1.1\r\nHost: here\r\n"
    whole = [head + b"Content-Length: %d\r\n\r\n" % len(body), body]
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    cut_up = [head + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"]

    async def talk() -> bytes:
        async with InProcess() as connection:
            return await connection.answer(*(cut_up if cut else whole))

    assert uvloop.run(talk()) == hashlib.sha256(body).digest()


def test_neither_request_nor_connection_leaves_anything_to_the_garbage_collector() -> None:
    async def talk() -> None:
        async with InProcess() as connection:
            await connection.answer(post(1))
            first = weakref.ref(connection.protocol.cycle)
            await connection.answer(post(2))
            assert first() is None
        await connection.lost.wait()
        protocol = weakref.ref(connection.protocol)
        del connection.protocol
        assert protocol() is None

    gc.disable()
    try:
        uvloop.run(talk())
    finally:
        gc.enable()


def test_what_is_not_http_gets_a_problem(server: RunningServer) -> None:
    for nonsense in (b"nonsense\r\n\r\n", b"CONNECT here:80 HTTP/1.1\r\nHost: here\r\n\r\n"):
        with Connection(server, nonsense) as connection:
            ((status, document),) = connection.answers()
            assert (status, document["code"]) == (400, "bad_request")
            assert connection.is_closed()


IMAGE = red_image(7)
LENGTH = b"Content-Length: %d\r\n\r\n" % len(IMAGE)
UNCLEAR = {
    "no host": b"POST /classify HTTP/1.1\r\n" + LENGTH,
    "two hosts": b"POST /classify HTTP/1.1\r\nHost: a\r\nHost: b\r\n" + LENGTH,
    "no name of a host": b"POST /classify HTTP/1.1\r\nHost: a b/c\r\n" + LENGTH,
    "HTTP/2.0": b"POST /classify HTTP/2.0\r\nHost: a\r\n" + LENGTH,
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "a transfer coding": b"POST /classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a length and chunks": b"POST /classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + LENGTH,
}


@pytest.mark.parametrize("head", UNCLEAR.values(), ids=UNCLEAR)
def test_what_a_proxy_may_have_understood_otherwise_is_refused(server: RunningServer, head: bytes) -> None:
    with Connection(server, head + IMAGE) as connection:
        ((status, document),) = connection.answers()
        assert (status, document["code"]) == (400, "bad_request")
        assert connection.is_closed()


@pytest.mark.parametrize("start", [b"POST /classify HTTP/1.0\r\n", b"POST /classify HTTP/1.1\r\nHost: [::1]:80\r\n"])
def test_a_host_may_be_an_address_or_missing_in_http_1_0(server: RunningServer, start: bytes) -> None:
    with Connection(server, start + LENGTH + IMAGE) as connection:
        assert [class_of(answer) for answer in connection.answers()] == [7]


def test_who_is_refused_instead_of_told_to_continue_opens_another_connection(server: RunningServer) -> None:
    """On this one, the server could not tell whether the body comes next."""
    head = post(7, b"Expect: 100-continue")[: -len(red_image(7))]
    with Connection(server, head.replace(b"/classify", b"/classify?model=none")) as connection:
        assert [status for status, _ in connection.answers()] == [404]
        assert connection.is_closed()
    with Connection(server, head) as connection:
        assert connection.socket.recv(2**16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.socket.sendall(red_image(7) + post(8))
        assert [class_of(answer) for answer in connection.answers(2)] == [7, 8]


def test_the_continuation_that_a_client_of_http_1_0_expects_is_not_sent(server: RunningServer) -> None:
    expecting = b"POST /classify HTTP/1.0\r\nExpect: 100-continue\r\n" + LENGTH
    with Connection(server, expecting, IMAGE) as connection:
        assert [class_of(answer) for answer in connection.answers()] == [7]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://here/a?b", "/a", b"b"),
        (b"http://here", "/", b""),
        (b"http://here?b=1", "/", b"b=1"),
        (b"http://here:80/", "/", b""),
        (b"/a", "/a", b""),
        (b"*", "*", b""),
    ],
)
def test_a_target_may_be_absolute_and_without_a_path(target: bytes, path: str, query: bytes) -> None:
    seen: list[tuple[str, bytes]] = []

    async def talk() -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append((scope["path"], scope["query_string"]))
            await Response(NOTHING)(scope, receive, send)

        async with InProcess(app) as connection:
            await connection.answer(b"GET %s HTTP/1.1\r\nHost: here\r\n\r\n" % target)

    uvloop.run(talk())
    assert seen == [(path, query)]


@pytest.mark.parametrize(
    "target", [b"http://here:99999/livez", b"http://", b"http://[::1/livez", b"x://%/" + b"a" * 9999]
)
def test_a_target_that_is_no_url_is_the_clients_mistake(server: RunningServer, target: bytes) -> None:
    lines, head = len(server.lines), b"GET " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n"
    with Connection(server, head) as connection:
        ((status, document),) = connection.answers()
        assert (status, document["detail"]) == (400, "not HTTP/1.1: the target is not a URL")
        assert connection.is_closed()
    with Connection(server, post(7) + head) as connection:
        assert [class_of(answer) for answer in connection.answers()] == [7]
        assert connection.is_closed()
    assert not any("ERROR" in line for line in server.lines[lines:])


def test_nonsense_after_a_request_does_not_pass_for_its_answer(server: RunningServer) -> None:
    with Connection(server, post(7) + b"nonsense\r\n\r\n") as connection:
        assert [class_of(answer) for answer in connection.answers()] == [7]
        assert connection.is_closed()


@pytest.mark.parametrize(("earlier", "sent"), [(0, b""), (0, b"\r\n"), (0, GET), (1, b"\r\n"), (1, GET)])
def test_a_connection_without_a_whole_head_is_closed_in_time(earlier: int, sent: bytes) -> None:
    async def talk() -> None:
        async with InProcess() as connection:
            for _ in range(earlier):
                await connection.answer(post(1))
            await connection.deliver(sent)
            connection.clock.advance(connection.protocol.header_timeout_s - 0.1)
            assert not connection.is_closing
            connection.clock.advance(0.1)
            assert await connection.is_closed()

    uvloop.run(talk())


def test_dripping_does_not_extend_the_time() -> None:
    async def talk() -> None:
        async with InProcess() as connection:
            await connection.deliver(GET)
            for _ in range(9):
                connection.clock.advance(connection.protocol.header_timeout_s / 10)
                await connection.deliver(b"a")
            assert not connection.is_closing
            connection.clock.advance(connection.protocol.header_timeout_s / 10 + 0.1)
            assert await connection.is_closed()

    uvloop.run(talk())


def test_the_time_for_a_head_is_a_setting(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, header_timeout_ms=100) as server, Connection(server, GET) as connection:
        assert connection.is_closed()


def test_a_head_in_time_may_be_followed_by_a_slow_answer() -> None:
    async def talk() -> None:
        app = HeldUp()
        async with InProcess(app) as connection:
            await connection.deliver(post(1) * 3 + GET)
            connection.clock.advance(10 * connection.protocol.header_timeout_s)
            allow(app, 4)
            for _ in range(3):
                assert await connection.answer() == digest_of(1)
            # The time in which the server reads nothing does not count either.
            assert await connection.answer(b"\r\n") == NOTHING

    uvloop.run(talk())


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_an_upgrade_is_ignored(server: RunningServer, pieces: int) -> None:
    start = len(server.lines)
    h2c = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    websocket = b"Connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    message = post(1, *h2c) + post(2, *h2c) + GET + websocket + post(3)
    step = -(-len(message) // pieces)
    with Connection(server, *(message[at : at + step] for at in range(0, len(message), step))) as connection:
        first, second, alive, third = connection.answers(4)
    assert [class_of(answer) for answer in (first, second, third)] == [1, 2, 3]
    assert alive[0] == 200
    assert server.lines[start:] == []


def test_a_pipelining_client_that_leaves_is_noticed() -> None:
    async def talk() -> None:
        left = asyncio.Event()

        async def waiting(_scope: Scope, receive: Receive, _send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

        async with InProcess(waiting) as connection:
            await connection.deliver(post(2) + post(3))
            assert connection.protocol.waiting == 1
        await asyncio.wait_for(left.wait(), PATIENCE_S)

    uvloop.run(talk())


@pytest.mark.parametrize("size_bytes", [1, 1 << 20])
def test_a_client_that_leaves_ends_what_is_done_for_it(size_bytes: int) -> None:
    async def talk() -> None:
        entered, left = asyncio.Event(), asyncio.Event()

        async def working(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            await request.body()
            try:
                async with cancelled_when_gone(request):
                    entered.set()
                    await asyncio.Event().wait()
            except ClientDisconnect:
                left.set()
                raise

        async with InProcess(working) as connection:
            head = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % size_bytes
            connection.send(head, bytes(size_bytes))
            await asyncio.wait_for(entered.wait(), PATIENCE_S)
        await asyncio.wait_for(left.wait(), PATIENCE_S)

    uvloop.run(talk())


def test_of_a_client_that_had_left_nothing_is_begun() -> None:
    async def talk() -> None:
        lost, ended = asyncio.Event(), asyncio.Event()

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive, send)
            await lost.wait()
            with pytest.raises(ClientDisconnect):
                async with cancelled_when_gone(request):
                    await asyncio.Event().wait()
            ended.set()

        async with InProcess(late) as connection:
            await connection.deliver(post(2))
        await asyncio.wait_for(connection.lost.wait(), PATIENCE_S)
        lost.set()
        await asyncio.wait_for(ended.wait(), PATIENCE_S)

    uvloop.run(talk())


def closed_by_client(*requests: bytes, both: bool = False) -> bytes | None:
    """Send them over TCP, and close one direction, or both, before they may be answered; None: both were closed."""

    async def talk() -> bytes | None:
        app, lost = HeldUp(), asyncio.Event()

        class Heard(BoundedProtocol):
            longest_look_s = 0.01

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                lost.set()

        config = Config(app, lifespan="off", log_config=None)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Heard(config=config, server_state=ServerState(), app_state={}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            writer.writelines(requests)
            await app.begun.acquire()
            if both:
                writer.close()
                await asyncio.wait_for(lost.wait(), PATIENCE_S)
                return None
            writer.write_eof()
            first = await reader.read(1)  # the server has noticed
            allow(app, len(requests))
            return first + await reader.read()
        finally:
            writer.close()
            server.close()

    return uvloop.run(talk())


@pytest.mark.parametrize("requests", [1, 2])
def test_who_has_closed_one_direction_gets_the_answers_to_what_it_has_sent(requests: int) -> None:
    answers = closed_by_client(*[post(1)] * requests)
    assert answers
    assert answers.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == answers.count(digest_of(1)) == requests


def test_who_has_closed_both_directions_is_noticed_before_there_is_an_answer() -> None:
    assert closed_by_client(post(1), both=True) is None


@pytest.mark.parametrize("unfinished", [post(1)[:-1], post(1) + b"GET", post(1) + post(2)[:-1], GET])
def test_half_a_request_is_never_waited_for(server: RunningServer, unfinished: bytes) -> None:
    with Connection(server, unfinished) as connection:
        connection.socket.shutdown(socket.SHUT_WR)
        while connection.socket.recv(4096):
            pass


def test_of_pipelined_requests_only_some_are_read_ahead() -> None:
    async def talk() -> None:
        app = HeldUp()
        async with InProcess(app) as connection:
            await connection.deliver(post(1) * 4)
            for waiting in (3, 2, 1):
                await app.begun.acquire()
                assert connection.protocol.waiting == waiting
                assert connection.protocol.reading_is_paused == (waiting > 1)
                allow(app, 1)
                await connection.answer()
            connection.send(*[post(1)] * 20)
            allow(app, 21)
            for _ in range(21):
                await connection.answer()

    uvloop.run(talk())


def test_requests_beyond_the_limit_end_the_connection_after_the_answers_to_those_before() -> None:
    async def talk() -> None:
        app = HeldUp()
        async with InProcess(app) as connection:
            await connection.deliver(post(9) + (GET + b"\r\n") * (MAX_PIPELINED + 1))
            allow(app, 1 + MAX_PIPELINED)
            assert await connection.answer() == digest_of(9)
            for _ in range(MAX_PIPELINED):
                assert await connection.answer() == NOTHING
            assert await connection.is_closed()

    uvloop.run(talk())


BROKEN_CHUNK = b"POST /classify HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"


@pytest.mark.parametrize("earlier", [1, 2])
def test_a_broken_body_leaves_the_answers_to_earlier_requests(earlier: int) -> None:
    async def talk() -> None:
        app = HeldUp()
        async with InProcess(app) as connection:
            await connection.deliver(post(4) * earlier + BROKEN_CHUNK)
            allow(app, earlier)
            for _ in range(earlier):
                assert await connection.answer() == digest_of(4)
            assert await connection.is_closed()

    uvloop.run(talk())


def test_a_broken_body_behind_its_own_answer_gets_no_second_one(server: RunningServer) -> None:
    head, _, broken = BROKEN_CHUNK.replace(b"/classify", b"/classify?model=none").partition(b"\r\n\r\n")
    with Connection(server, head + b"\r\n\r\n") as connection:
        assert [status for status, _ in connection.answers()] == [404]
        connection.socket.sendall(broken)
        assert connection.is_closed()


def test_who_reads_nothing_of_an_answer_loses_the_connection() -> None:
    async def talk() -> None:
        async def talkative(scope: Scope, receive: Receive, send: Send) -> None:
            await Response(bytes(2**26))(scope, receive, send)

        async with InProcess(talkative) as connection:
            connection.read_nothing()
            connection.send(post(1))
            await connection.writing_is_paused.wait()
            assert not connection.lost.is_set()
            for _ in range(2):  # filling the socket's buffers counted as progress
                connection.clock.advance(connection.protocol.stalled_s)
            await asyncio.wait_for(connection.lost.wait(), PATIENCE_S)

    uvloop.run(talk())


def test_an_upload_that_the_end_of_the_drain_cuts_off_gets_a_problem(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with (
        RunningServer(tmp_path, drain_timeout_ms=500, access_log="true") as server,
        Connection(server, post(1)[:-10]) as connection,
    ):
        until(lambda: server.client.get("/livez").status_code == 200)  # so it has read the earlier upload, too
        server.process.terminate()
        ((status, document),) = connection.answers()
        assert (status, document["code"]) == (503, "shutting_down")
        assert connection.is_closed()
        assert server.process.wait(PATIENCE_S) == 0
        server.wait_for_line("the server has ended")
        assert not [line for line in server.lines if "Traceback" in line]
        assert [line for line in server.lines if "POST /classify" in line and "503" in line]


def test_who_reads_no_answers_does_not_hold_up_the_end(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with (
        RunningServer(tmp_path, drain_timeout_ms=500) as server,
        Connection(server) as connection,
    ):
        for _ in range(10):  # together far more than socket buffers hold
            connection.socket.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * (MAX_PIPELINED // 2))
            assert server.client.get("/livez").status_code == 200  # so much has been read
        server.process.terminate()
        assert server.process.wait(PATIENCE_S) == 0
        server.wait_for_line("the server has ended")
        assert not [line for line in server.lines if "Traceback" in line or "stopping without waiting" in line]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("few")
    tiny.write(repository)
    with RunningServer(repository, max_connections=2) as running:
        running.client.close()
        yield running


def test_too_many_connections_get_a_problem(few: RunningServer) -> None:
    with (
        Connection(few),
        Connection(few, GET + b"\r\n") as last,
        Connection(few, GET + b"\r\n") as connection,
    ):
        last.socket.sendall(GET + b"\r\n")  # an existing connection is still served
        assert [status for status, _ in last.answers(2)] == [200, 200]
        ((status, document),) = connection.answers()
        assert (status, document["code"]) == (503, "too_many_connections")
        assert connection.is_closed()
        with ExitStack() as stack:
            silent = [stack.enter_context(Connection(few)) for _ in range(5)]
            assert silent[-1].is_closed()  # with twice as many, connections are closed at once


def test_probes_and_metrics_are_answered_where_too_many_connections_are_open(few: RunningServer) -> None:
    with Connection(few), Connection(few):
        for path in ("/livez", "/readyz", "/metrics", "/v2/health/ready"):
            answer = httpx.get(f"{few.url}{path}")
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert httpx.head(f"{few.url}/readyz").status_code == 200
        assert httpx.get(f"{few.url}/models").json()["code"] == "too_many_connections"
        with Connection(few) as silent, Connection(few) as another:
            assert silent.is_closed()  # long before the time limit of other connections
            assert another.is_closed()
