"""More models than may be loaded, in real processes: a request has its model loaded, and no request is lost."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import tiny
from tests.server.running import PATIENCE_S, GatedServer, RunningServer, red_image, top1, until

NAMES = "abcdefgh"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of which one is pinned and one cannot be loaded, and an ensemble and a cascade of others."""
    folder = tmp_path_factory.mktemp("repository")
    found = {name: tiny.write(folder, name, extras=name == "e") for name in NAMES}
    tiny.write_ensemble(folder, "pair", [found["f"], found["g"]])
    tiny.write_cascade(folder, "chain", [found["g"], found["f"]])
    tiny.write(folder, "broken")
    (folder / "broken/1/model.onnx").write_bytes(b"no model")
    (folder / "a/serving.json").write_text('{"pinned": true}')
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[GatedServer]:
    """Has at most three models loaded at one time, always including `a`."""
    with GatedServer(repository, max_loaded=3, default_model="b", stall_timeout_ms=5000, instances=2) as running:
        yield running


def states(server: RunningServer) -> dict[str, str]:
    return {model["name"]: model["state"] for model in server.client.get("/models").json()["models"]}


def loaded(server: RunningServer) -> set[str]:
    return {name for name, state in states(server).items() if state == "loaded"}


def test_at_the_start_what_is_pinned_and_the_default_are_loaded_and_all_else_is_known(server: GatedServer) -> None:
    found = states(server)
    assert found.keys() == {*NAMES, "pair", "chain", "broken"}
    assert server.client.get("/readyz").status_code == 200
    assert found["a"] == "loaded"
    index = {each["name"]: each["state"] for each in server.client.post("/v2/repository/index").json()}
    assert (index["a"], index["h"]) == ("READY", "UNAVAILABLE")
    assert server.client.get("/v2/models/h/ready").status_code == 200  # a request for it would be answered
    assert server.metric("serving_models", state="unloaded") == len(NAMES) + 1 - 2


@pytest.mark.parametrize("name", ["c", "d", "pair", "chain"])
def test_a_request_has_loaded_what_it_names(server: GatedServer, name: str) -> None:
    assert top1(server.classify(red_image(7), model=name)) == 7
    assert {"a", name} <= loaded(server)
    assert server.metric("serving_models", state="loaded") <= 3


def test_every_route_has_loaded_what_it_names(server: GatedServer) -> None:
    files = [("file", (f"{red}.png", red_image(red))) for red in range(8)]

    def batch() -> Any:
        return server.client.post("/classify/batch", params={"model": "c"}, files=files).json()["results"]

    def infer() -> Any:
        pixels = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [9] * 32 * 32 * 3}
        return server.client.post("/v2/models/d/infer", json={"inputs": [pixels]}).raise_for_status().json()

    def embed() -> Any:
        return server.client.post("/embed", params={"model": "e"}, content=red_image(9)).raise_for_status().json()

    for _ in range(2):
        assert [each["classification"]["predictions"][0]["class_id"] for each in batch()] == list(range(8))
        assert infer()["outputs"][1]["data"][0] == 9
        assert embed()["features"][0] == 9
        assert top1(server.classify(red_image(7), model="h", crops=10)) == 7
    assert loaded(server) == {"a", "e", "h"}


def test_all_that_ask_for_a_model_wait_for_one_load(server: GatedServer) -> None:
    server.classify(red_image(1), model="b")
    loads = server.metric("serving_model_loads_total", outcome="done")
    with server.hold("c") as let_go, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.classify, red_image(red), model="c") for red in range(8)]
        until(lambda: states(server)["c"] == "loading")
        assert top1(server.classify(red_image(3), model="b")) == 3  # meanwhile
        let_go()
        assert [top1(one.result()) for one in asked] == list(range(8))
    assert server.metric("serving_model_loads_total", outcome="done") == loads + 1


def test_who_gives_a_load_too_little_time_is_told_when_to_come_back(server: GatedServer) -> None:
    with server.hold("d"):
        answer = server.client.post(
            "/classify", params={"model": "d"}, content=red_image(1), headers={"X-Request-Timeout": "0.1"}
        )
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        assert int(answer.headers["Retry-After"]) >= 1
    until(lambda: states(server)["d"] == "loaded")  # for when the client retries


def test_a_model_does_not_go_while_a_request_of_it_runs(server: GatedServer) -> None:
    for name in "bc":
        server.classify(red_image(1), model=name)
    with server.hold(99) as let_go, ThreadPoolExecutor(1) as aside:
        evictions = server.metric("serving_model_evictions_total")
        runs = aside.submit(server.classify, red_image(99), model="b")
        until(lambda: server.pending() == 1)
        server.classify(red_image(1), model="c")
        for name in "defgde":
            assert top1(server.classify(red_image(2), model=name)) == 2
        assert "b" in loaded(server)
        assert server.metric("serving_model_evictions_total") >= evictions + 3
        let_go()
        assert top1(runs.result()) == 99


def test_a_model_that_cannot_be_loaded_costs_no_other_its_place(server: GatedServer) -> None:
    before = loaded(server)
    evictions = server.metric("serving_model_evictions_total")
    assert server.classify(red_image(1), model="broken").json()["code"] == "unknown_model"
    listing = server.client.get("/models").json()
    assert "SHA-256" in listing["refused"]["broken version 1"]
    assert loaded(server) == before
    assert server.metric("serving_model_evictions_total") == evictions


def test_an_engine_that_dies_while_it_loads_is_not_noticed(server: GatedServer) -> None:
    server.classify(red_image(1), model="b")
    with server.hold("c") as let_go, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.classify, red_image(red), model="c") for red in (5, 6)]
        until(lambda: states(server)["c"] == "loading")
        server.kill_child("engine")
        assert top1(server.classify(red_image(3), model="b")) == 3
        let_go()
        assert [top1(one.result()) for one in asked] == [5, 6]


def test_a_load_that_hangs_holds_up_no_other(server: GatedServer) -> None:
    with server.hold("f"), ThreadPoolExecutor(2) as pool:
        hangs = pool.submit(server.classify, red_image(1), model="f")
        until(lambda: states(server)["f"] == "loading")
        waits = pool.submit(server.classify, red_image(2), model="h")
        assert top1(waits.result()) == 2
        refused = hangs.result()
        assert (refused.status_code, refused.json()["code"]) == (503, "model_unavailable")
    until(lambda: states(server).get("f") == "loaded")  # a load that was given up on is still used
    assert top1(server.classify(red_image(1), model="f")) == 1


def test_models_are_loaded_and_unloaded_by_their_names(server: GatedServer) -> None:
    assert server.client.post("/v2/repository/models/g/load").status_code == 200
    assert states(server)["g"] == "loaded"
    assert server.client.post("/v2/repository/models/g/unload").status_code == 200
    assert server.classify(red_image(1), model="g").json()["code"] == "unknown_model"
    assert server.client.post("/v2/repository/models/broken/load").json()["code"] == "model_refused"
    assert server.client.post("/v2/repository/models/g/load").status_code == 200
    assert top1(server.classify(red_image(1), model="g")) == 1


def test_the_end_waits_for_the_loads_that_accepted_requests_wait_for(repository: Path) -> None:
    with GatedServer(repository, max_loaded=2, default_model="b") as server:
        with server.hold("c") as let_go, ThreadPoolExecutor(1) as aside:
            asked = aside.submit(server.classify, red_image(5), model="c")
            until(lambda: states(server)["c"] == "loading")
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_line("draining")
            let_go()
            assert top1(asked.result()) == 5
        assert server.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("flags", [{"max_loaded": 3}, {"memory_budget": "6MB", "engines": 2}])
def test_engines_that_die_while_models_come_and_go_lose_no_request(tmp_path: Path, flags: dict[str, object]) -> None:
    for number in range(12):
        tiny.write(tmp_path, f"m{number}")
    over = threading.Event()
    answered = [0] * 6
    engine = "engine-0" if "engines" in flags else "engine"

    def ask(url: str, client: int) -> None:
        chance = random.Random(client)
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as connection:
            while not over.is_set():
                number, red = min(11, int(chance.paretovariate(0.6)) - 1), chance.randrange(256)
                answer = connection.post("/classify", params={"model": f"m{number}"}, content=red_image(red))
                assert (top1(answer), answer.json()["model"]) == (red, f"m{number}")
                answered[client] += 1

    with (
        RunningServer(tmp_path, http_workers=2, default_model="m0", **flags) as running,
        ThreadPoolExecutor(6) as pool,
    ):
        asked = [pool.submit(ask, running.url, client) for client in range(6)]

        def comes(event: Callable[[], bool]) -> None:
            until(lambda: event() or any(one.done() for one in asked))

        try:
            for _ in range(3):
                enough = sum(answered) + 40
                comes(lambda enough=enough: sum(answered) > enough)  # type: ignore[misc]
                comes(lambda: running.metric("serving_models", state="loading") > 0)
                os.kill(running.pid(engine), signal.SIGKILL)
        finally:
            over.set()
        for one in asked:
            one.result()
        assert running.metric("serving_model_evictions_total") > 0
        assert running.client.get("/models").json()["refused"] == {}
