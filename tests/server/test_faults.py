"""Faults injected into real processes; more of them in test_promises, test_reload and test_memory.

docs/operations/promises.md lists them all.
"""

import hashlib
import io
import os
import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import onnx
import psutil
import pytest
from PIL import Image

from models import manifest
from tests import tiny
from tests.server.running import PATIENCE_S, GatedServer, RunningServer, red_image, top1, until

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
LARGE_BYTES = 256 * 2**20


@pytest.fixture(scope="module", params=[1, 2], ids=["one engine", "two engines"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunningServer:  # type: ignore[misc]
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    with RunningServer(repository, engines=request.param) as running:
        until(lambda: len(running.engines) == request.param)
        yield running


def kill_engines(server: RunningServer) -> None:
    """Kill all engines at once, and wait until their successors are ready."""
    old = {name: server.pid(name) for name in server.engines}
    for pid in old.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(server.pid(name) != pid for name, pid in old.items()))


def connect(server: RunningServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S)


def answer_of(connection: socket.socket) -> int:
    """The class in the next answer, after which the server closes the connection."""
    body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")[2]
    return top1(httpx.Response(200, content=body))


def post(image: bytes) -> bytes:
    head = f"POST /classify HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: {len(image)}\r\n\r\n"
    return head.encode() + image


def test_an_engine_killed_during_an_upload_is_not_noticed(server: RunningServer) -> None:
    head, _, image = post(red_image(11)).partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")  # from here on the upload is read
        connection.sendall(image[:-50])
        kill_engines(server)
        connection.sendall(image[-50:])
        assert answer_of(connection) == 11


def test_an_engine_killed_while_an_image_is_decoded_is_not_noticed(server: RunningServer) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (7000, 7000), (33, 0, 0)).save(stream, "PNG", compress_level=1)  # some tenths of a second
    for _ in range(20):  # on a busy machine the image may be decoded, and run, before the engine is killed
        batches, engines = server.batches(), {name: server.pid(name) for name in server.engines}
        with connect(server) as connection:
            connection.sendall(post(stream.getvalue()))
            until(lambda: server.pending() == 1)
            for pid in engines.values():
                os.kill(pid, signal.SIGKILL)
            too_soon = server.batches() > batches
            assert answer_of(connection) == 33
        until(lambda engines=engines: all(server.pid(name) != pid for name, pid in engines.items()))  # type: ignore[misc]
        if not too_soon:
            return
    pytest.fail("the image was always decoded too soon")


def test_an_engine_killed_when_the_answer_is_on_its_way_is_not_noticed(server: RunningServer) -> None:
    answered = server.metric("serving_requests_total", code="ok")
    with connect(server) as connection:
        connection.sendall(post(red_image(22)))
        until(lambda: server.metric("serving_requests_total", code="ok") == answered + 1)
        kill_engines(server)
        assert answer_of(connection) == 22


def test_a_killed_http_worker_breaks_its_own_connections_only(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    reds = list(range(1, 17))
    with GatedServer(tmp_path, http_workers=2, max_batch=1, queue_size=32) as server:

        def ask(red: int) -> int | None:
            with suppress(httpx.TransportError), httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
                return top1(client.post("/classify", content=red_image(red)))
            return None

        with ThreadPoolExecutor(16) as pool, server.hold(*reds[2:]) as let_go:
            asked = [pool.submit(ask, red) for red in reds]
            until(lambda: server.pending() >= 8)
            server.kill_child("http-0")
            let_go()
            found = [one.result() for one in asked]
            assert {red for red, one in zip(reds, found, strict=True) if one is not None} == {*found} - {None}
            until(lambda: server.pending() == 0)  # including its own
            again = list(pool.map(ask, reds))  # its slots are free again, too
        assert all(one in (red, None) for red, one in zip(reds, found, strict=True))
        assert again == reds


def test_a_worker_without_descriptors_finds_the_new_engine_once_it_has_some(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path) as server:
        worker = server.pid("http-0")
        before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (10, before[1]))
        server.kill_child("engine")
        resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
        assert top1(server.classify(red_image(9))) == 9


def test_processes_that_were_all_stopped_for_longer_than_one_may_hang_just_go_on(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, stall_timeout_ms=5000, http_workers=2) as server:
        start = len(server.lines)
        tree = server.tree()
        for process in tree:
            process.suspend()
        time.sleep(5.5)  # longer than the supervisor lets a process be silent
        for process in tree:
            process.resume()
        assert top1(server.classify(red_image(9))) == 9
        assert server.terminate() == 0
        assert not [line for line in server.lines[start:] if "it is killed" in line]


def test_an_engine_without_memory_for_a_model_goes_on_with_those_it_has(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    tiny.write(repository)
    with RunningServer(repository, reload_ms=100) as server:
        engine = psutil.Process(server.pid("engine"))
        room = engine.memory_info().vms + LARGE_BYTES // 2
        _, most = engine.rlimit(resource.RLIMIT_AS)
        engine.rlimit(resource.RLIMIT_AS, (room, most))
        publish_large(tmp_path / "aside", repository, 2)
        until(lambda: "tiny version 2" in server.client.get("/models").json()["refused"])
        assert top1(server.classify(red_image(7))) == 7
        assert server.classify(red_image(7)).json()["version"] == 1
        assert server.metric("serving_refused_models", cause="not_now") == 1
        engine.rlimit(resource.RLIMIT_AS, (most, most))
        until(lambda: server.classify(red_image(7)).json()["version"] == 2)  # without anybody asking for it


def publish_large(aside: Path, repository: Path, version: int) -> None:
    """Publish a version whose file is larger than the engine's memory."""
    found = tiny.write(aside, "tiny", version)
    folder = aside / "tiny" / str(version)
    model = onnx.load(folder / found.file.name)
    model.doc_string = " " * LARGE_BYTES
    content = model.SerializeToString()
    (folder / found.file.name).write_bytes(content)
    file = found.file.model_copy(update={"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)})
    (folder / manifest.FILE_NAME).write_text(found.model_copy(update={"file": file}).model_dump_json())
    folder.rename(repository / "tiny" / str(version))


def test_a_clock_that_jumps_is_not_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not FAKETIME.exists():
        pytest.skip("libfaketime is not on this machine")
    tiny.write(tmp_path / "repository")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(FAKETIME))
        patch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
        patch.setenv("FAKETIME_NO_CACHE", "1")
        patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        server = GatedServer(tmp_path / "repository", max_batch=1, timeout_ms=1_000_000, stall_timeout_ms=20_000)
    with server, ThreadPoolExecutor(1) as aside:
        pids = {process.pid for process in server.tree()}
        for jump in ("+1y", "-1y"):
            year, batches = server_year(server), server.batches()
            with server.hold(*range(1, 8)):
                answers = aside.submit(server.classify_all, [red_image(red) for red in range(8)], 8)
                until(lambda batches=batches: server.batches() > batches)  # type: ignore[misc]
                clock.write_text(jump)
            assert [top1(answer) for answer in answers.result()] == list(range(8))
            until(lambda year=year: server_year(server) != year)  # type: ignore[misc]
        assert top1(server.classify(red_image(9))) == 9
        assert {process.pid for process in server.tree()} == pids
        assert server.terminate() == 0


def server_year(server: RunningServer) -> str:
    """The year by the server's own clock."""
    return server.client.get("/livez").headers["Date"].split()[3]
