"""Models that come, change and go while real processes serve."""

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import psutil
import pytest

from server.repository import signature
from tests import tiny
from tests.server.running import RunningServer, red_image, until

OFTEN_MS = 100


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    """Serves `repository`, where each test has its own model beside `tiny`."""
    tiny.write(repository)
    tiny.write(repository, "slow", work=50)
    tiny.write(repository, "growing")
    with RunningServer(repository, reload_ms=OFTEN_MS, default_model="tiny") as running:
        yield running


def versions(server: RunningServer) -> list[int]:
    return [model["version"] for model in server.client.get("/models").json()["models"]]


def refused(server: RunningServer) -> dict[str, str]:
    found: dict[str, str] = server.client.get("/models").json()["refused"]
    return found


def test_a_reload_under_load_loses_no_request(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    tiny.write(repository, work=20)
    with RunningServer(repository, reload_ms=OFTEN_MS) as server, ThreadPoolExecutor(8) as clients:
        over = threading.Event()
        done: list[tuple[int, int, int]] = []

        def ask(red: int) -> None:
            while not over.is_set():
                answer = server.classify(red_image(red)).raise_for_status().json()
                done.append((red, answer["predictions"][0]["class_id"], answer["version"]))

        def answers(version: int) -> bool:
            return any(found == version for _, _, found in list(done))

        asked = [clients.submit(ask, red) for red in range(8)]
        try:
            until(lambda: answers(1))
            for version in range(2, 6):
                tiny.publish(repository, version, work=20)
                until(lambda version=version: answers(version))  # type: ignore[misc]
                shutil.rmtree(repository / "tiny" / str(version - 1))
                until(lambda version=version: versions(server) == [version])  # type: ignore[misc]
        finally:
            over.set()
        for one in asked:
            one.result()
    assert all(sent == found for sent, found, _ in done)
    assert {version for _, _, version in done} == {1, 2, 3, 4, 5}


def test_a_broken_model_is_refused_with_its_reason_while_the_others_go_on(
    server: RunningServer, repository: Path, tmp_path: Path
) -> None:
    tiny.write(tmp_path, "bad")
    (tmp_path / "bad" / "1" / "model.onnx").write_bytes(b"no model")
    (tmp_path / "bad").rename(repository / "bad")
    until(lambda: "bad version 1" in refused(server))
    assert "SHA-256" in refused(server)["bad version 1"]
    assert server.classify(red_image(7)).json()["predictions"][0]["class_id"] == 7


def test_a_model_whose_file_comes_after_its_manifest_is_served_then(
    server: RunningServer, repository: Path, tmp_path: Path
) -> None:
    tiny.write(tmp_path, "late")
    content = (tmp_path / "late" / "1" / "model.onnx").read_bytes()
    (tmp_path / "late" / "1" / "model.onnx").unlink()
    (tmp_path / "late").rename(repository / "late")
    until(lambda: "late version 1" in refused(server))
    (repository / "late" / "1" / "model.onnx").write_bytes(content)
    until(lambda: server.classify(red_image(8), model="late").status_code == 200)
    assert "late version 1" not in refused(server)


def test_settings_of_a_model_take_effect_while_it_is_served(server: RunningServer, repository: Path) -> None:
    assert server.classify(red_image(1), model="slow").status_code == 200
    (repository / "slow" / "serving.json").write_text(json.dumps({"timeout_ms": 0.001}))
    until(lambda: server.classify(red_image(1), model="slow").status_code == 504)


def test_a_model_larger_than_any_at_the_start_is_refused(server: RunningServer, repository: Path) -> None:
    tiny.publish(repository, 2, name="growing", crop=64)
    until(lambda: "growing version 2" in refused(server))
    assert "restart the server" in refused(server)["growing version 2"]
    assert server.classify(red_image(9), model="growing").json()["version"] == 1


def test_an_engine_that_dies_comes_back_with_what_was_served_last(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, reload_ms=OFTEN_MS) as server:
        tiny.publish(tmp_path, 2)
        until(lambda: versions(server) == [1, 2])
        server.kill_child("engine")
        assert server.classify(red_image(9)).json()["version"] == 2


def test_the_memory_of_an_unloaded_model_is_given_back(model_repository: Path, tmp_path: Path) -> None:
    tiny.write(tmp_path)
    shutil.copytree(model_repository / "efficientnet_lite0", tmp_path / "efficientnet_lite0")
    with RunningServer(tmp_path) as server:
        engine = psutil.Process(server.pid("engine"))
        before = engine.memory_full_info().uss
        assert server.client.post("/v2/repository/models/efficientnet_lite0/unload").status_code == 200
        until(lambda: before - engine.memory_full_info().uss > 50 * 2**20)  # it takes some 150 MiB with its buffers


def test_a_model_that_was_loaded_on_request_and_is_gone_holds_up_no_other(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path, "b")
    with RunningServer(tmp_path, models="a", reload_ms=50) as server:
        for _ in range(2):
            assert server.client.post("/v2/repository/models/b/load").status_code == 200
        shutil.rmtree(tmp_path / "b")
        tiny.write(tmp_path, "a", 2)
        until(lambda: server.classify(red_image(1), model="a").json()["version"] == 2)
        until(lambda: server.classify(red_image(1), model="b").status_code == 404)


def test_who_is_told_that_a_model_is_loaded_finds_it_whichever_worker_answers(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path, "b")
    with RunningServer(tmp_path, http_workers=2) as server, ThreadPoolExecutor(1) as aside:
        assert server.client.post("/v2/repository/models/b/unload").status_code == 200
        workers = [psutil.Process(server.pid(name)) for name in ("http-0", "http-1")]
        (other,) = (worker for worker in workers if not is_connected(worker))
        start = len(server.lines)
        other.suspend()
        try:
            loading = aside.submit(server.client.post, "/v2/repository/models/b/load")
            server.wait_for_line(r"serving .*\bb\b", start)
            told = wait([loading], 0.5).done
        finally:
            other.resume()
        assert loading.result().status_code == 200
        assert not told
        for _ in range(20):
            assert httpx.post(f"{server.url}/classify?model=b", content=red_image(1)).status_code == 200


def is_connected(worker: psutil.Process) -> bool:
    """Whether a client keeps a connection to it."""
    return any(one.status == psutil.CONN_ESTABLISHED for one in worker.net_connections("tcp"))


def test_what_a_runtime_keeps_in_the_repository_is_no_change_of_it(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    before = signature(tmp_path)
    (tmp_path / ".tensorrt" / "0123").mkdir(parents=True)
    (tmp_path / ".tensorrt" / "0123" / "cache").touch()
    assert signature(tmp_path) == before
