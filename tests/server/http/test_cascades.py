"""Cascades, which ask each model only if the one before it was not sure, over every transport."""

import os
import signal
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from resnet_serving_client.clients import Client
from tests import tiny
from tests.server.running import GatedServer, until


def image(red: int, green: int, *, sure: bool) -> bytes:
    """An image of these levels; a model of green is sure of it, one of red only if `sure`: else two classes tie."""
    picture = Image.new("RGB", (32, 32), (red, green, 0))
    if not sure:
        picture.paste((red + 1, green, 0), (16, 0, 32, 32))
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


SURE, UNSURE = image(40, 200, sure=True), image(40, 200, sure=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedServer]:
    """`same` asks `red` and then `green`, `other` a model that reads images at another size, `deep` an ensemble."""
    repository = tmp_path_factory.mktemp("repository")
    red, green = tiny.write(repository, "red"), tiny.write(repository, "green", channel=1)
    small = tiny.write(repository, "small", crop=16, channel=1)
    pair = tiny.write_ensemble(repository, "pair", [green, small])
    for name, last in (("same", green), ("other", small), ("deep", pair)):
        tiny.write_cascade(repository, name, [red, last])
    with GatedServer(
        repository, default_model="same", cache_entries=8, grpc_port=0, queue_size=16, reload_ms=0
    ) as running:
        yield running


def answer(server: GatedServer, content: bytes, **parameters: Any) -> tuple[int, str, bool]:
    response = server.classify(content, **parameters)
    assert response.status_code == 200, response.text
    found = response.json()
    return found["predictions"][0]["class_id"], found["answered_by"], found["cut_short"]


def counted(server: GatedServer, model: str, member: str, outcome: str) -> float:
    return server.metric("serving_cascade_images_total", model=model, member=member, outcome=outcome)


@pytest.mark.parametrize(("model", "last"), [("same", "green"), ("other", "small"), ("deep", "pair")])
@pytest.mark.parametrize("crops", [1, 10])
def test_the_rule_decides_who_answers(server: GatedServer, model: str, last: str, crops: int) -> None:
    before = [counted(server, model, *each) for each in (("red", "answered"), ("red", "passed_on"), (last, "answered"))]
    assert answer(server, SURE, model=model, crops=crops) == (40, "red", False)
    assert answer(server, UNSURE, model=model, crops=crops) == (200, last, False)
    after = [counted(server, model, *each) for each in (("red", "answered"), ("red", "passed_on"), (last, "answered"))]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 1]
    assert server.pending() == 0


def test_an_answer_that_is_remembered_names_who_gave_it(server: GatedServer) -> None:
    asked = image(41, 201, sure=False)
    first, again = (server.classify(asked, model="same", top_k=3) for _ in range(2))
    assert (first.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
    assert again.json()["answered_by"] == "green"
    assert again.json()["predictions"] == first.json()["predictions"]


def test_other_models_name_nobody(server: GatedServer) -> None:
    assert not {"answered_by", "cut_short"} & server.classify(SURE, model="red").json().keys()


def test_each_image_of_a_batch_names_who_answered_it(server: GatedServer) -> None:
    files = [("file", (name, content)) for name, content in (("sure", SURE), ("unsure", UNSURE), ("none", b"no image"))]
    results = server.client.post("/classify/batch", files=files, params={"model": "same"}).json()["results"]
    assert [each["classification"] and each["classification"]["answered_by"] for each in results] == [
        "red",
        "green",
        None,
    ]


def test_the_client_tells_who_answered(server: GatedServer) -> None:
    with Client(server.url) as asked:
        found = asked.classify(UNSURE, model="same")
        assert (found.answered_by, found.cut_short) == ("green", False)
        assert asked.classify(UNSURE, model="red").answered_by is None


def test_the_open_inference_protocol_tells_who_answered_each_image(server: GatedServer) -> None:
    data = [b64encode(content).decode() for content in (SURE, UNSURE)]
    sent = {"name": "encoded", "datatype": "BYTES", "shape": [2], "data": data}
    response = server.client.post("/v2/models/same/infer", json={"inputs": [sent]})
    assert response.status_code == 200, response.text
    assert response.json()["parameters"] == {
        "random_weights": False,
        "answered_by": "red,green",
        "cut_short": False,
    }
    metadata = server.client.get("/v2/models/same").json()
    assert (metadata["platform"], [each["name"] for each in metadata["inputs"]]) == ("cascade", ["images", "encoded"])
    index = {each["name"]: each["state"] for each in server.client.post("/v2/repository/index").json()}
    assert index["same"] == "READY"
    (stats,) = server.client.get("/v2/models/same/stats").json()["model_stats"]
    assert stats["inference_stats"]["success"]["count"] == stats["execution_count"] > 0


def test_grpc_tells_who_answered(server: GatedServer) -> None:
    request = pb.ModelInferRequest(
        model_name="same",
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name="encoded", datatype="BYTES", shape=[1], contents=pb.InferTensorContents(bytes_contents=[UNSURE])
            )
        ],
    )
    with grpc.insecure_channel(server.grpc_address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        parameters = infer(request, timeout=60).parameters
    assert (parameters["answered_by"].string_param, parameters["cut_short"].bool_param) == ("green", False)
    assert not parameters["random_weights"].bool_param


def test_a_cascade_is_listed_with_its_rules(server: GatedServer) -> None:
    listed = {model["name"]: model for model in server.client.get("/models").json()["models"]}
    assert listed["same"]["backend"] == "cascade"
    assert listed["same"]["default"]
    assert [member["rule"] for member in listed["same"]["members"]] == [{"kind": "margin", "threshold": 0.2}, None]


def test_a_deadline_that_passes_while_the_next_member_is_asked_gives_the_answer_that_is_there(
    server: GatedServer,
) -> None:
    with server.hold("green"):
        response = server.client.post(
            "/classify", content=image(50, 0, sure=False), headers={"X-Request-Timeout": "1.5"}
        )
        assert response.status_code == 200, response.text
        assert (response.json()["answered_by"], response.json()["cut_short"]) == ("red", True)
    until(lambda: server.pending() == 0)
    assert counted(server, "same", "red", "cut_short") == 1
    # It was not remembered as the final answer.
    assert answer(server, image(50, 0, sure=False)) == (0, "green", False)


def test_an_engine_that_dies_between_the_members_loses_nothing(server: GatedServer) -> None:
    batches = server.batches()
    with ThreadPoolExecutor(1) as pool, server.hold("green") as let_go:
        asked = pool.submit(answer, server, image(60, 210, sure=False))
        until(lambda: server.batches() >= batches + 2)  # the second member has its batch
        os.kill(server.pid("engine"), signal.SIGKILL)
        let_go()
        assert asked.result(60) == (210, "green", False)
    until(lambda: server.pending() == 0)


def test_who_leaves_between_the_members_frees_the_place(server: GatedServer) -> None:
    batches = server.batches()
    with server.hold("green"):
        connection = server.post_and_keep_open(image(70, 220, sure=False))
        until(lambda: server.batches() >= batches + 2)
        assert server.pending() == 1
        connection.close()
    until(lambda: server.pending() == 0)


def test_without_one_of_its_members_a_cascade_is_not_served(tmp_path: Path) -> None:
    red, green = tiny.write(tmp_path, "red"), tiny.write(tmp_path, "green", channel=1)
    tiny.write_cascade(tmp_path, "same", [red, green])
    with GatedServer(tmp_path, default_model="red", reload_ms=0) as server:
        batches = server.batches()
        with ThreadPoolExecutor(1) as pool, server.hold("green") as let_go:
            asked = pool.submit(answer, server, UNSURE, model="same")
            until(lambda: server.batches() >= batches + 2)
            assert server.client.post("/v2/repository/models/green/unload").status_code == 200
            gone = server.classify(SURE, model="same")
            assert (gone.status_code, gone.json()["code"]) == (404, "unknown_model")
            reason = server.client.get("/models").json()["refused"]["same version 1"]
            assert reason == "its member green version 1 is not served"
            let_go()
            assert asked.result(60) == (200, "green", False)  # a request under way keeps its members until it ends
        assert server.client.post("/v2/repository/models/green/load").status_code == 200
        until(lambda: server.classify(SURE, model="same").status_code == 200)
