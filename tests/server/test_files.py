"""No request chooses which files are opened: whatever it names, the server opens only files of its own choice."""

import http.client
import json
import mimetypes
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests import tiny
from tests.server.running import PATIENCE_S, ROOT, RunningServer, red_image

HOOK = """
import json, os, sys
log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
FILES = {{"open", "os.chdir", "os.listdir", "os.scandir", "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link"}}
def note(event, arguments):
    if event in FILES:
        os.write(log, (json.dumps(str(arguments[0])) + chr(10)).encode())
sys.addaudithook(note)
"""
"""Python imports `sitecustomize` first of all, in the supervisor and in each of its children."""
CANARY = "smuggled"
"""A servable model outside the repository. Only requests of these tests name it."""
PARTS = st.sampled_from(
    [
        *("..", ".", "", "~root", "/etc/passwd", "file:///etc/passwd", "C:\\", "%2e%2e", "\0", "a" * 300, "é", "1"),
        *(CANARY, f"../{CANARY}", f"..\\{CANARY}", f"%2e%2e%2f{CANARY}", f"tiny\0{CANARY}", "tiny", "manifest.json"),
    ]
)
NAMES = st.tuples(PARTS, st.lists(PARTS, max_size=3)).map(lambda parts: "/".join([parts[0], *parts[1], CANARY]))
"""Each ends with the canary, so that none names a model in the repository."""
PATHS = [
    ("GET", "/v2/models/{}"),
    ("GET", "/v2/models/{}/config"),
    ("GET", "/v2/models/{}/stats"),
    ("GET", "/v2/models/{}/ready"),
    ("GET", "/v2/models/{}/versions/1"),
    ("GET", "/v2/models/tiny/versions/{}"),
    ("GET", "/v2/models/tiny/versions/{}/config"),
    ("POST", "/v2/models/{}/infer"),
    ("POST", "/v2/models/tiny/versions/{}/infer"),
    ("POST", "/v2/repository/models/{}/load"),
    ("POST", "/v2/repository/models/{}/unload"),
    ("POST", "/classify?model={}"),
    ("POST", "/classify?version={}"),
    ("GET", "/static/{}"),
    ("GET", "/{}"),
]


class Watched:
    """A server that logs every file that it opens."""

    def __init__(self, server: RunningServer, log: Path, own: list[Path]) -> None:
        address = urlsplit(server.url)
        self._address = address.hostname or "", address.port
        self._log = log
        self._own = own
        self._started = log.stat().st_size
        self.server = server

    def status(self, method: str, path: str, body: bytes) -> int:
        """The status of a request whose path is sent unchanged."""
        with closing(http.client.HTTPConnection(*self._address, timeout=PATIENCE_S)) as connection:
            connection.request(method, path, body)
            return connection.getresponse().status

    def opened(self) -> set[str]:
        """Paths that have been opened, listed or changed."""
        return {json.loads(line) for line in self._log.read_text().splitlines()}

    def foreign(self) -> set[str]:
        """Those since the start that belong neither to the server nor to Python's imports."""
        opened = self._log.read_text()[self._started :].splitlines()
        paths = {
            path for path in map(json.loads, opened) if not path.isdecimal() and path not in {*sys.path, str(ROOT)}
        }
        return {path for path in paths if not any(Path(ROOT, path).is_relative_to(own) for own in self._own)}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder, hook = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("hook")
    run = tmp_path_factory.mktemp("run")
    tiny.write(folder / "repository")
    tiny.write(folder, CANARY)
    log = hook / "opened"
    (hook / "sitecustomize.py").write_text(HOOK.format(log=str(log)))
    own = [folder / "repository", hook, run, ROOT / "server", ROOT / "models", ROOT / "pyvenv.cfg"]
    own += [Path(sys.prefix), Path(sys.base_prefix), *map(Path, mimetypes.knownfiles)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(hook))
        patch.setenv("TMPDIR", str(run))
        patch.setattr(tempfile, "tempdir", None)
        with RunningServer(folder / "repository", grpc_port=0, reload_ms=0) as server:
            yield Watched(server, log, own)


def test_what_is_opened_is_noticed(watched: Watched) -> None:
    assert watched.server.client.get("/static/page.js").status_code == 200
    opened = watched.opened()
    assert {path for path in opened if path.endswith("repository/tiny/1/model.onnx")}  # by the engine
    assert {path for path in opened if path.endswith("server/http/page/page.js")}  # by the HTTP worker


EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@EXAMPLES
@given(st.sampled_from(PATHS), NAMES, st.sampled_from(["", "/", "/.~"]))
def test_a_name_opens_nothing_over_http(watched: Watched, route: tuple[str, str], name: str, safe: str) -> None:
    method, path = route
    body = red_image(1) if path.startswith("/classify") else b""
    status = watched.status(method, path.format(quote(name, safe=safe)), body)
    assert status in (400, 404)
    assert not [path for path in watched.opened() if CANARY in path]


@EXAMPLES
@given(st.sampled_from(["metadata", "version", "config", "ready", "load", "unload", "infer"]), NAMES)
def test_a_name_opens_nothing_over_grpc(watched: Watched, call: str, name: str) -> None:
    with grpc.insecure_channel(watched.server.grpc_address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        calls: dict[str, Callable[[], Any]] = {
            "metadata": lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name=name)),
            "version": lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny", version=name)),
            "config": lambda: stub.ModelConfig(pb.ModelConfigRequest(name=name)),
            "ready": lambda: stub.ModelReady(pb.ModelReadyRequest(name=name)),
            "load": lambda: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name)),
            "unload": lambda: stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name)),
            "infer": lambda: stub.ModelInfer(pb.ModelInferRequest(model_name=name)),
        }
        try:
            code = grpc.StatusCode.NOT_FOUND if calls[call]().ready is False else grpc.StatusCode.OK
        except grpc.RpcError as error:
            code = error.code()
    assert code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
    assert not [path for path in watched.opened() if CANARY in path]


def test_nothing_else_was_opened(watched: Watched) -> None:
    assert watched.status("POST", "/classify", red_image(1)) == 200
    assert watched.foreign() == set()
