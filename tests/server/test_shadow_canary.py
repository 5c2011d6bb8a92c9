"""Shadows and canaries in real processes: requests do not suffer from them, and the server reports how they do."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from server.serving.shadows import MOST_IMAGES
from tests import tiny
from tests.server.running import GatedServer, RunningServer, red_image, top1, until

OFTEN_MS = 100


def write(repository: Path, name: str, settings: dict[str, Any] | None = None, **options: Any) -> None:
    tiny.write(repository, name, **options)
    if settings:
        (repository / name / "serving.json").write_text(json.dumps(settings))


def described(server: RunningServer, name: str) -> dict[str, Any]:
    """What `GET /models` says about a model."""
    models = server.client.get("/models").raise_for_status().json()["models"]
    found: dict[str, Any] = next(model for model in models if model["name"] == name)
    return found


def answerers(server: RunningServer, count: int, model: str, **parameters: Any) -> list[str]:
    answers = [server.classify(red_image(5), model=model, **parameters).raise_for_status() for _ in range(count)]
    assert {top1(answer) for answer in answers} == {5}
    return [answer.json()["model"] for answer in answers]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alike` shadows every image of `watched`, `unlike` every second one; `fresh` answers a quarter for `main`."""
    repository = tmp_path_factory.mktemp("repository")
    write(repository, "main", extras=True)
    write(repository, "fresh", {"canary_of": "main", "share": 0.25}, extras=True)
    write(repository, "watched")
    write(repository, "alike", {"shadow_of": "watched", "share": 1})
    write(repository, "unlike", {"shadow_of": "watched", "share": 0.5}, channel=1)
    write(repository, "lost", {"shadow_of": "nobody", "share": 0.5})
    write(repository, "leaving")
    write(repository, "left", {"shadow_of": "leaving", "share": 1})
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with RunningServer(repository, reload_ms=OFTEN_MS, default_model="main", grpc_port=0) as running:
        yield running


def test_shadows_get_their_share_and_who_asks_is_told_how_often_they_agree(server: RunningServer) -> None:
    for red in range(1, 7):
        answer = server.classify(red_image(red), model="watched")
        assert (top1(answer), answer.json()["model"]) == (red, "watched")
    files = [("file", (f"{red}.png", red_image(red))) for red in range(1, 5)]
    assert server.client.post("/classify/batch?model=watched", files=files).status_code == 200
    until(lambda: described(server, "alike")["shadow"]["images"] == 10)
    until(lambda: described(server, "unlike")["shadow"]["images"] == 5)
    alike, unlike = described(server, "alike")["shadow"], described(server, "unlike")["shadow"]
    assert (alike["of"], alike["of_version"], alike["share"], alike["idle"]) == ("watched", 1, 1.0, None)
    assert (alike["agreed"], alike["dropped"], alike["failed"]) == (10, 0, 0)
    assert alike["agreement"] == pytest.approx({"share": 1.0, "low": 0.025**0.1, "high": 1.0})
    assert unlike["agreement"] == pytest.approx({"share": 0.0, "low": 0.0, "high": 1 - 0.025**0.2})
    assert alike["timed_images"] >= 6  # some of the batch's may have run together
    assert min(alike["inference_ms"], alike["inference_ms_of_main"]) > 0
    labels = {"model": "alike", "version": "1", "main": "watched", "main_version": "1"}
    assert server.metric("serving_shadow_images_total", **labels, outcome="agreed") == 10
    assert server.metric("serving_shadow_images_total", **labels) == 10
    assert server.metric("serving_shadow_inference_seconds_count", **labels, by="main") == alike["timed_images"]
    assert server.metric("serving_requests_total", model="alike") == 0  # no client asked for it
    assert described(server, "watched")["shadow"] is None


def test_what_can_be_no_candidate_is_refused_and_one_whose_model_goes_is_idle(
    server: RunningServer, repository: Path
) -> None:
    assert "no model 'nobody'" in server.client.get("/models").json()["refused"]["lost version 1"]
    assert described(server, "left")["shadow"]["idle"] is None
    assert server.client.post("/v2/repository/models/leaving/unload").status_code == 200
    assert described(server, "left")["shadow"]["idle"] == "leaving is not served"
    assert server.client.post("/v2/repository/models/leaving/load").status_code == 200
    assert described(server, "left")["shadow"]["idle"] is None
    shutil.rmtree(repository / "leaving")
    until(lambda: described(server, "left")["shadow"]["idle"] == "leaving is not served")
    assert top1(server.classify(red_image(4), model="left")) == 4


def test_a_canary_answers_its_share_of_every_route_and_says_so(server: RunningServer) -> None:
    assert answerers(server, 8, "main") == ["main", "main", "main", "fresh"] * 2
    assert answerers(server, 4, "main", crops=10) == ["main", "main", "main", "fresh"]
    assert answerers(server, 4, "main", version=1) == ["main"] * 4
    packed = BytesIO()
    with ZipFile(packed, "w") as archive:
        for red in range(5):
            archive.writestr(f"{red}.png", red_image(red))
    batches = [server.client.post("/classify/batch", content=packed.getvalue()).json()["results"] for _ in range(4)]
    names = [{each["classification"]["model"] for each in batch} for batch in batches]
    assert names == [{"main"}] * 3 + [{"fresh"}]
    embedded = [server.client.post("/embed", content=red_image(5)).json() for _ in range(4)]
    assert [each["model"] for each in embedded] == ["main"] * 3 + ["fresh"]
    pixels = np.full((2, 32, 32, 3), 5, np.uint8)
    tensor = {"name": "images", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": pixels.ravel().tolist()}
    answers = [server.client.post("/v2/models/main/infer", json={"inputs": [tensor]}).json() for _ in range(4)]
    assert [each["model_name"] for each in answers] == ["main"] * 3 + ["fresh"]
    with grpc.insecure_channel(server.grpc_address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )
        asked = pb.ModelInferRequest(model_name="main")
        asked.inputs.add(name="images", datatype="UINT8", shape=[2, 32, 32, 3])
        asked.raw_input_contents.append(pixels.tobytes())
        assert [infer(asked).model_name for _ in range(4)] == ["main"] * 3 + ["fresh"]
    canary = described(server, "fresh")["canary"]
    assert canary == {"of": "main", "share": 0.25, "idle": None, "asked": 7, "passed_back": 0}
    assert server.metric("serving_canary_requests_total", model="fresh", outcome="asked") == 7


def test_what_a_canary_cannot_answer_the_main_model_does(server: RunningServer, repository: Path) -> None:
    before = described(server, "fresh")["canary"]
    answers = [server.classify(red_image(5), include="features,logits").json()["model"] for _ in range(4)]
    assert answers == ["main"] * 3 + ["fresh"]
    assert server.client.post("/v2/repository/models/fresh/unload").status_code == 200
    assert answerers(server, 4, "main") == ["main"] * 4
    assert server.client.post("/v2/repository/models/fresh/load").status_code == 200
    (repository / "fresh" / "serving.json").write_text('{"canary_of": "main", "share": 1}')
    until(lambda: described(server, "fresh")["canary"]["share"] == 1)
    assert answerers(server, 2, "main") == ["fresh"] * 2
    assert described(server, "fresh")["canary"]["asked"] == before["asked"] + 3


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedServer]:
    """`new` shadows every image of `main`, each on its own engine; there is room for one request."""
    repository = tmp_path_factory.mktemp("apart")
    write(repository, "main", {"devices": [0]})
    write(repository, "new", {"shadow_of": "main", "share": 1, "devices": [1]})
    with GatedServer(repository, queue_size=1, engines=2, inference_threads=1, default_model="main") as running:
        yield running


def test_shadows_that_hang_take_nothing_from_requests_and_what_is_too_much_is_dropped(apart: GatedServer) -> None:
    count = MOST_IMAGES + 4
    with apart.hold("new") as release:
        assert answerers(apart, count, "main") == ["main"] * count  # each had the only place
        assert apart.pending() == 0
        until(lambda: described(apart, "new")["shadow"]["dropped"] == count - MOST_IMAGES - 1)
        release()
        until(lambda: described(apart, "new")["shadow"]["images"] == MOST_IMAGES + 1)


def test_an_engine_that_dies_of_a_shadow_takes_no_request_with_it_and_that_image_is_not_tried_again(
    apart: GatedServer,
) -> None:
    images = described(apart, "new")["shadow"]["images"]
    batches = apart.metric("serving_batch_size_count", model="new")
    with apart.hold("new"):
        assert answerers(apart, 1, "main") == ["main"]
        until(lambda: apart.metric("serving_batch_size_count", model="new") == batches + 1)
        os.kill(apart.pid("engine-1"), signal.SIGKILL)
        until(lambda: described(apart, "new")["shadow"]["failed"] == 1)
        assert answerers(apart, 4, "main") == ["main"] * 4
        assert described(apart, "new")["shadow"]["idle"]
    until(lambda: described(apart, "new")["shadow"]["idle"] == "an inference engine ended in the last minute")
    assert described(apart, "new")["shadow"]["images"] == images
    assert apart.metric("serving_batch_size_count", model="new") == batches + 1


def test_several_http_workers_count_together(tmp_path: Path) -> None:
    write(tmp_path, "main")
    write(tmp_path, "new", {"shadow_of": "main", "share": 1})
    with RunningServer(tmp_path, http_workers=2, default_model="main") as server:
        for _ in range(12):  # each over a new connection, to either worker
            httpx.post(f"{server.url}/classify", content=red_image(7)).raise_for_status()
        until(lambda: described(server, "new")["shadow"]["agreed"] == 12)


def test_a_canary_is_promoted_and_rolled_back_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write(repository, "main")
    with RunningServer(repository, reload_ms=OFTEN_MS, default_model="main", http_workers=2) as server:
        over = threading.Event()
        done: list[tuple[int, int, tuple[str, int]]] = []

        def ask(red: int) -> None:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                while not over.is_set():
                    answer = client.post("/classify", content=red_image(red)).raise_for_status().json()
                    by = answer["model"], answer["version"]
                    done.append((red, answer["predictions"][0]["class_id"], by))

        def only(*wanted: tuple[str, int]) -> bool:
            """Whether the latest answers came from exactly these."""
            return {by for _, _, by in done[-40:]} == set(wanted)

        with ThreadPoolExecutor(4) as clients:
            asked = [clients.submit(ask, red) for red in range(4)]
            try:
                until(lambda: only(("main", 1)))
                tiny.write(tmp_path, "new")
                (tmp_path / "new" / "serving.json").write_text('{"canary_of": "main", "share": 0.25}')
                (tmp_path / "new").rename(repository / "new")
                until(lambda: only(("main", 1), ("new", 1)))
                (repository / "new" / "serving.json").write_text('{"canary_of": "main", "share": 1}')
                until(lambda: only(("new", 1)))
                publish_as(repository / "new" / "1", repository / "main" / "2")  # promoted
                until(lambda: 2 in [model["version"] for model in server.client.get("/models").json()["models"]])
                shutil.rmtree(repository / "new")
                until(lambda: only(("main", 2)))
                shutil.rmtree(repository / "main" / "2")  # rolled back
                until(lambda: only(("main", 1)))
            finally:
                over.set()
            for one in asked:
                one.result()
    assert all(sent == found for sent, found, _ in done)


def publish_as(version: Path, place: Path) -> None:
    """Publish the same file under another name and number in one step, as docs/guides/rollout.md does."""
    aside = shutil.copytree(version, place.with_name(f".{place.name}"))
    path = aside / "manifest.json"
    found = json.loads(path.read_bytes())
    path.write_text(json.dumps(found | {"name": place.parent.name, "version": int(place.name)}))
    aside.rename(place)
