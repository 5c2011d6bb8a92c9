"""Checks that the installed uvicorn has everything that `server/http/uvicorn_internals.py` needs of it."""

import asyncio
import inspect
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.http.uvicorn_internals import TESTED_WITH

METHODS: Mapping[type, Mapping[str, tuple[str, ...]]] = {
    HttpToolsProtocol: {
        "connection_made": ("transport",),
        "connection_lost": ("exc",),
        "eof_received": (),
        "pause_writing": (),
        "resume_writing": (),
        "on_message_begin": (),
        "on_url": ("url",),
        "on_header": ("name", "value"),
        "on_headers_complete": (),
        "on_body": ("body",),
        "on_message_complete": (),
        "on_response_complete": (),
        "shutdown": (),
        "_unset_keepalive_if_required": (),
    },
    FlowControl: {"pause_reading": (), "resume_reading": ()},
    uvicorn.Server: {
        "serve": ("sockets",),
        "startup": ("sockets",),
        "shutdown": ("sockets",),
        "capture_signals": (),
    },
}
"""Methods that are overridden or called, with their parameters."""
ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "connection": {
        "app": "what the next request is run by",
        "connections": "how many connections there are",
        "cycle": "the newest request",
        "expect_100_continue": "which is of HTTP/1.1",
        "flow": "pauses reading and writing",
        "headers": "the fields of the head that is read, which an Upgrade has to be taken out of",
        "loop": "the event loop",
        "parser": "which is replaced after an Upgrade",
        "pipeline": "the requests that wait, the newest first",
        "scheme": "whether it is TLS",
        "transport": "what is written to",
        "url": "the target of the head that is read",
    },
    "cycle": {
        "disconnected": "whether the client has gone",
        "keep_alive": "whether the connection stays after the answer",
        "message_event": "wakes who waits for the body or for the client to go",
        "more_body": "whether the body goes on",
        "response_complete": "whether the answer was written",
        "response_started": "whether the head of the answer was written",
        "waiting_for_100_continue": "whether the client waits before it sends the body",
    },
    "flow": {"read_paused": "whether reading is paused", "write_paused": "whether who writes must wait"},
    "server": {
        "config": "the settings",
        "force_exit": "whether to end at once",
        "lifespan": "has the state that apps share",
        "server_state": "what the connections share",
        "servers": "what is closed first at the end",
        "should_exit": "whether to end",
    },
}
"""Attributes that are read or set, and what for."""
REREAD = (
    f"server/http/uvicorn_internals.py was written for uvicorn {TESTED_WITH}, and {uvicorn.__version__} is installed: "
    "read there what is needed of it, compare httptools_impl.py, flow_control.py and server.py of both versions"
)


class Transport(asyncio.Transport):
    """A transport that leads nowhere."""

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def write(self, data: object) -> None:
        pass


async def _app(_scope: object, _receive: object, _send: object) -> None:
    await asyncio.Event().wait()


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def objects() -> Iterator[Callable[[], Mapping[str, object]]]:
    """Makes one object of each kind, as after a connection has sent three requests, none of them answered."""

    async def make() -> Mapping[str, object]:
        server = uvicorn.Server(uvicorn.Config(_app, lifespan="off", log_config=None, ws="none"))
        server.should_exit = True
        await server.serve([])
        connection = HttpToolsProtocol(server.config, server.server_state, {})
        connection.connection_made(Transport())
        connection.data_received(GET * 3)
        return {"server": server, "connection": connection, "cycle": connection.cycle, "flow": connection.flow}

    with asyncio.Runner() as runner:
        yield lambda: runner.run(make())


def missing(objects: Mapping[str, object]) -> list[str]:
    """The needed parts that are missing or have changed."""
    found = []
    for kind, methods in METHODS.items():
        for name, parameters in methods.items():
            method = getattr(kind, name, None)
            has = tuple(inspect.signature(method).parameters)[1:] if method else None
            if has != parameters:
                now = "is gone" if has is None else f"takes {has}"
                found.append(f"{kind.__qualname__}.{name}, which took {parameters}, {now}")
    for what, attributes in ATTRIBUTES.items():
        found += [
            f"{type(objects[what]).__qualname__}.{name} is gone: {use}"
            for name, use in attributes.items()
            if not hasattr(objects[what], name)
        ]
    return found


def test_the_version_is_the_one_that_this_was_written_for() -> None:
    pinned = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"uvicorn=={TESTED_WITH}" in pinned, REREAD
    assert uvicorn.__version__ == TESTED_WITH, REREAD


def test_everything_is_there(objects: Callable[[], Mapping[str, object]]) -> None:
    assert not missing(objects()), REREAD


def test_what_is_not_there_is_named(
    objects: Callable[[], Mapping[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objects()
    del made["cycle"].message_event  # type: ignore[attr-defined]
    monkeypatch.delattr(HttpToolsProtocol, "_unset_keepalive_if_required")
    monkeypatch.setattr(HttpToolsProtocol, "on_body", HttpToolsProtocol.on_header)
    assert missing(made) == [
        "HttpToolsProtocol.on_body, which took ('body',), takes ('name', 'value')",
        "HttpToolsProtocol._unset_keepalive_if_required, which took (), is gone",
        "RequestResponseCycle.message_event is gone: wakes who waits for the body or for the client to go",
    ]


def test_requests_that_wait_are_queued_the_newest_first(objects: Callable[[], Mapping[str, object]]) -> None:
    connection = objects()["connection"]
    assert isinstance(connection, HttpToolsProtocol)
    (newest, _), (older, _) = connection.pipeline
    assert newest is connection.cycle is not older
    assert (newest.response_started, newest.response_complete, newest.more_body) == (False, False, False), REREAD
    assert connection.flow.read_paused, REREAD
