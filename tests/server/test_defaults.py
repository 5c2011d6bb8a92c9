"""docs/reference/defaults.md, on library defaults and our choices, compared with the objects that really serve."""

import asyncio
import inspect
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import anyio.to_thread
import fastapi
import httpx
import onnxruntime as ort
import openvino
import pillow_heif
import pytest
import uvicorn
import uvloop
from PIL import AvifImagePlugin, GifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin
from pydantic_settings import BaseSettings
from python_multipart.multipart import MultipartParser
from starlette.types import Receive, Scope, Send

from models.manifest import Manifest
from resnet_serving_client.clients import AsyncClient, Client
from server import repository, tls
from server.engine import backends
from server.http import uvicorn_internals, worker
from server.http.app import create_app
from server.images import decode
from server.listeners import Listeners
from server.serving.service import Service
from server.settings import Settings
from tests import tiny
from tests.server.certificates import written
from tests.server.running import PATIENCE_S, ROOT, RunningServer

SAME = "the same"
SETTINGS = Settings(inference_threads=2)


class Row(NamedTuple):
    default: str
    here: str


def table(section: str) -> dict[str, Row]:
    """The rows below a heading of the page, by each name in their first column."""
    page = (ROOT / "docs/reference/defaults.md").read_text()
    lines = re.split(r"^## ", page, flags=re.MULTILINE)
    (found,) = (part for part in lines if part.startswith(section))
    rows: dict[str, Row] = {}
    for line in re.findall(r"^\| .* \|$", found, flags=re.MULTILINE)[2:]:
        names, default, here, _ = (cell.strip() for cell in line.strip("|").split("|"))
        several = re.findall(r"`([^`]+)`", names) or [names]
        rows |= {name: Row(default if len(several) == 1 else "", here.strip("`")) for name in several}
    return rows


def text(value: object) -> str:
    """A value as the page writes it."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, type):
        return value.__name__
    return "a dict" if isinstance(value, dict) else re.sub(r"^[A-Z]\w+\.", "", str(value))  # enumerations in C++


def compare(section: str, live: Mapping[str, object], defaults: Mapping[str, object], *, whole: bool = True) -> None:
    """Check that the page has every item of `live`, with its value; with `whole`, that it has no others."""
    rows = table(section)
    assert set(live) - set(rows) == set(), "not decided in docs/reference/defaults.md"
    if whole:
        assert set(rows) - set(live) == set(), "in docs/reference/defaults.md, but not there any more"
    for name, value in live.items():
        row, default = rows[name], defaults.get(name)
        if row.default and name in defaults and not row.default.startswith("by "):
            assert text(default) == row.default, name
        if row.here == SAME:
            assert text(value) == text(default) or not (value or default), name
        elif row.here in Settings.model_fields:
            setting: Any = getattr(SETTINGS, row.here)
            assert value in (setting, setting / 1e3), name
        elif not row.here.startswith("by "):
            assert text(value) == row.here, name


async def _app(_scope: Scope, _receive: Receive, _send: Send) -> None:
    pass


def test_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "as many as there are")
    parameters = inspect.signature(uvicorn.Config.__init__).parameters
    defaults = {name: found.default for name, found in parameters.items() if name not in ("self", "app")}
    config = worker.config(_app, SETTINGS)
    config.load()
    compare("uvicorn", {name: getattr(config, name, None) for name in defaults}, defaults)


def test_sockets() -> None:
    async def accepted(listener: socket.socket) -> dict[str, object]:
        config = worker.config(_app, SETTINGS)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        made: asyncio.Queue[Any] = asyncio.Queue()
        protocol: Any = config.http_protocol_class
        connection_made = protocol.connection_made

        def seen(self: Any, transport: asyncio.BaseTransport) -> None:
            connection_made(self, transport)
            made.put_nowait(transport.get_extra_info("socket"))

        protocol.connection_made = seen
        await uvicorn_internals.listen(server, [listener])
        _, writer = await asyncio.open_connection(*listener.getsockname())
        one = await made.get()
        found = {
            "TCP_NODELAY": one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            "SO_KEEPALIVE": one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            "SO_REUSEADDR": listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR),
            "SO_REUSEPORT": listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT),
            # tcpi_sacked of struct tcp_info: for a listening socket, its backlog
            "backlog": struct.unpack_from("I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)[0],
        }
        writer.close()
        for listening in server.servers:
            listening.close()
        return found

    with Listeners.open(Settings(port=0, http_workers=1)) as listeners:
        compare("Sockets", uvloop.run(accepted(listeners.sockets[0])), {})


def test_tls(tmp_path: Path) -> None:
    context = tls.context(tls.read(*written(tmp_path)))
    names = ("minimum_version", "maximum_version", "verify_mode", "num_tickets")
    compare("TLS", {name: getattr(context, name) for name in names}, {}, whole=False)


def test_forms_and_threads() -> None:
    parameters = inspect.signature(MultipartParser.__init__).parameters
    parser = MultipartParser(b"boundary", {})
    defaults = {name: found.default for name, found in parameters.items() if name.startswith("max_")}
    live = {name: getattr(parser, name) for name in defaults}

    async def threads() -> float:
        return anyio.to_thread.current_default_thread_limiter().total_tokens

    live["threads for routes that are not asynchronous (AnyIO)"] = asyncio.run(threads())
    compare("Forms and threads", live, defaults, whole=False)


@pytest.mark.parametrize("library", [fastapi.FastAPI, httpx.Client, httpx.AsyncClient])
def test_fastapi_and_httpx(library: type[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    signature = inspect.signature(library.__init__)
    defaults = {name: found.default for name, found in signature.parameters.items() if name != "self"}
    defaults = {name: getattr(default, "value", default) for name, default in defaults.items()}
    given: dict[str, Any] = {}
    made = library.__init__

    def make(self: Any, **arguments: Any) -> None:
        given.update(arguments)
        made(self, **arguments)

    monkeypatch.setattr(library, "__init__", make)
    if library is fastapi.FastAPI:
        tiny.write(tmp_path)
        catalogue, nothing = repository.scan(tmp_path), cast("Any", None)
        create_app(Service(SETTINGS, catalogue, nothing, nothing, nothing, nothing))
    else:
        (Client if library is httpx.Client else AsyncClient)()
    section = "FastAPI" if library is fastapi.FastAPI else "The client (httpx)"
    compare(section, defaults | given, defaults)


def test_pillow() -> None:
    assert decode  # importing it sets some
    modules = {
        "Image": Image,
        "ImageFile": ImageFile,
        "PngImagePlugin": PngImagePlugin,
        "GifImagePlugin": GifImagePlugin,
        "AvifImagePlugin": AvifImagePlugin,
        "TiffImagePlugin": TiffImagePlugin,
        "pillow_heif.options": pillow_heif.options,
    }
    live = {}
    for name in table("Pillow"):
        module, _, constant = name.rpartition(".")
        if module:
            live[name] = getattr(modules[module], constant)
    for name in filter(str.isupper, dir(pillow_heif.options)):
        live[f"pillow_heif.options.{name}"] = getattr(pillow_heif.options, name)
    defaults = {name: live[name] for name, row in table("Pillow").items() if row.here == SAME and name in live}
    compare("Pillow", live, defaults, whole=False)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Manifest, bytes]:
    found = tiny.write(tmp_path, work=1)
    return found, (tmp_path / found.name / "1" / found.file.name).read_bytes()


def test_onnx_runtime(model: tuple[Manifest, bytes]) -> None:
    backend: Any = backends.load(*model, SETTINGS)
    options, fresh = backend._alone.get_session_options(), ort.SessionOptions()
    names = [name for name in dir(fresh) if not name.startswith("_") and not callable(getattr(fresh, name))]
    live = {name: getattr(options, name) for name in names}
    spin = "session.intra_op.spin_duration_us"
    compare("ONNX Runtime", live | {spin: options.get_session_config_entry(spin)}, _of(fresh, names), whole=False)


def _of(found: object, names: list[str]) -> dict[str, object]:
    return {name: getattr(found, name) for name in names}


def test_openvino(model: tuple[Manifest, bytes]) -> None:
    backend: Any = backends.load(*model, SETTINGS.model_copy(update={"backend": "openvino"}))
    compiled, core = backend._alone._create_request.__self__, openvino.Core()
    can_be_set = [name for name, kind in core.get_property("CPU", "SUPPORTED_PROPERTIES").items() if kind == "RW"]
    names = [name for name in can_be_set if name in compiled.get_property("SUPPORTED_PROPERTIES")]
    defaults = {name: core.get_property("CPU", name) for name in names}
    live = {name: compiled.get_property(name) for name in names}
    live["INFERENCE_PRECISION_HINT"] = live["INFERENCE_PRECISION_HINT"].get_type_name().replace("f32", "float32")
    defaults["CACHE_DIR"] = live["CACHE_DIR"] = core.get_property("CACHE_DIR")
    compare("OpenVINO", live, defaults, whole=False)


def test_settings() -> None:
    config: Any = Settings.model_config
    compare(
        "Settings", {name: config[name] for name in table("Settings") if name != "option"}, BaseSettings.model_config
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    with RunningServer(repository, grpc_port=0, max_connections=3, keep_alive_ms=1000) as running:
        yield running


def test_metrics(server: RunningServer) -> None:
    names = {line.partition(" ")[0] for line in server.client.get("/metrics").text.splitlines()}
    assert not [name for name in names if name.startswith("python_") or "_created" in name]
    assert not [name for name in names if name.startswith("process_") and "{process=" not in name]


HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The preface of HTTP/2, with empty settings (RFC 9113, 3.4)."""


def test_grpc(server: RunningServer) -> None:
    host, _, port = urlsplit(f"//{server.grpc_address}").netloc.rpartition(":")
    connections = [socket.create_connection((host, int(port)), PATIENCE_S) for _ in range(4)]
    try:
        for connection in connections:
            connection.sendall(HELLO)
        streams = [connection.makefile("rb") for connection in connections]
        heads = [stream.read(9) for stream in streams]
        assert [head == b"" for head in heads].count(True) == 1  # max_allowed_incoming_connections
        stream, head = next((stream, head) for stream, head in zip(streams, heads, strict=True) if head)
        body = stream.read(int.from_bytes(head[:3], "big"))
        found = dict(struct.unpack_from(">HI", body, at) for at in range(0, len(body), 6))
        assert table("gRPC")["MAX_CONCURRENT_STREAMS"].here == "max_connections + 80"
        assert found[3] == 3 + 80
        assert str(found[6]) == table("gRPC")["MAX_HEADER_LIST_SIZE"].here
        assert b"connection idle" in stream.read()  # max_connection_idle_ms: it says goodbye, and closes
    finally:
        for connection in connections:
            connection.close()
