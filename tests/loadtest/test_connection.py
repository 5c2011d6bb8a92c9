import socket
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import pytest
import uvloop

from loadtest.connection import Connection, Response, connect, request

PATIENCE_S = 60.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def answering(*connections: Sequence[bytes]) -> Generator[str]:
    """A server that answers each read of a connection with the next of these bytes, and then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)

        def serve() -> None:
            for pieces in connections:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(PATIENCE_S)
                    for piece in pieces:
                        connection.recv(1 << 16)
                        connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/classify?top_k=1"
        finally:
            thread.join()


def ask(url: str, times: int = 1) -> list[Response]:
    async def run() -> list[Response]:
        async with connect(url) as connection:
            return [await connection.ask(request(url, b"photo")) for _ in range(times)]

    return uvloop.run(run())


def test_a_request_is_one_post_with_the_headers_that_are_given() -> None:
    head, _, body = request("http://host:1/classify?top_k=1", b"photo", {"A": "b"}).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [b"POST /classify?top_k=1 HTTP/1.1", b"Host: host:1", b"A: b", b"Content-Length: 5"]
    assert body == b"photo"


def test_a_connection_carries_one_request_after_the_other() -> None:
    with answering([OK, OK.replace(b"200", b"503")]) as url:
        assert ask(url, 2) == [Response(200, b"ok"), Response(503, b"ok")]


@pytest.mark.parametrize("answers", [[OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")], [OK, b""]])
def test_a_connection_that_ends_is_an_error_for_the_next_request(answers: list[bytes]) -> None:
    with answering(answers) as url, pytest.raises(ConnectionError, match="has closed"):
        ask(url, 2)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"?\r\n\r\n"])
def test_what_has_no_length_is_an_error(answer: bytes) -> None:
    with answering([answer]) as url, pytest.raises(ConnectionError, match="without a length"):
        ask(url)


def test_what_nobody_asked_for_ends_the_connection() -> None:
    async def run(url: str) -> Callable[[], bool]:
        connection = await Connection.open(url)
        connection.transport.write(b"no request")
        await connection.closed
        return lambda: connection.is_usable

    with answering([OK]) as url:
        assert not uvloop.run(run(url))()
