"""KServe's V1 protocol, and the routes of Hugging Face's client, used by a plain HTTP client."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests import tiny
from tests.server.running import RunningServer, red_image


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    tiny.write(repository, "other", channel=1)
    with RunningServer(repository, default_model="tiny", queue_size=8, max_body_bytes=2**20) as running:
        yield running


def text(red: int) -> str:
    return base64.b64encode(red_image(red)).decode()


def test_models_are_listed_and_ready(server: RunningServer) -> None:
    assert server.client.get("/v1/models").json() == {"models": ["other", "tiny"]}
    assert server.client.get("/v1/models/tiny").json() == {"name": "tiny", "ready": True}
    missing = server.client.get("/v1/models/none")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_model")


def test_each_instance_has_its_prediction_in_its_place(server: RunningServer) -> None:
    instances: list[Any] = [
        {"b64": text(1)},
        {"image_bytes": {"b64": text(2)}},
        {"data": text(3)},
        text(4),
    ]
    body = {"instances": instances, "parameters": {"top_k": 2}}
    predictions = server.client.post("/v1/models/tiny:predict", json=body).json()["predictions"]
    assert [[best["class_id"], best["label"]] for best, _ in predictions] == [
        [red, f"red {red}"] for red in range(1, 5)
    ]
    assert all(first["score"] >= second["score"] for first, second in predictions)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"{", 400, "invalid_request"),
        ({}, 400, "invalid_request"),
        ({"instances": []}, 400, "invalid_request"),
        ({"instances": [{"b64": ""}]}, 400, "empty_body"),
        ({"instances": [{"b64": "%"}]}, 400, "invalid_request"),
        ({"instances": [{"b64": "QQ=="}]}, 415, "not_an_image"),
        ({"instances": [{"x": "QQ=="}]}, 400, "invalid_request"),
        ({"instances": [{"b64": "QQ==", "key": "1"}]}, 400, "invalid_request"),
        ({"instances": [[[0, 0, 0]]]}, 400, "invalid_request"),
        ({"instances": ["QQ=="] * 9}, 400, "invalid_request"),
        ({"instances": ["QQ=="], "signature_name": "x"}, 400, "invalid_request"),
        ({"instances": ["QQ=="], "parameters": {"top_k": 0}}, 400, "invalid_request"),
        (b" " * (2**20 + 1), 413, "body_too_large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_mistake_has_an_error(server: RunningServer, body: Any, status: int, code: str) -> None:
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = server.client.post("/v1/models/tiny:predict", **sent)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize("path", ["/v1/models/tiny:predict", "/v2/models/tiny/infer", "/", "/models/tiny"])
def test_a_query_is_refused_and_not_ignored(server: RunningServer, path: str) -> None:
    answer = server.client.post(path, params={"top_k": 3}, content=red_image(1))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


@pytest.mark.parametrize(("path", "green"), [("/", False), ("/models/tiny", False), ("/models/other", True)])
def test_an_image_has_labels_and_scores(server: RunningServer, path: str, *, green: bool) -> None:
    answer = server.client.post(path, content=red_image(7), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200
    assert [[*each] for each in answer.json()] == [["label", "score"]] * 5
    assert answer.json()[0]["label"] == ("red 0" if green else "red 7")
    body = {"inputs": text(7), "parameters": {"top_k": 2, "function_to_apply": "softmax"}}
    assert server.client.post(path, json=body).json() == answer.json()[:2]


@pytest.mark.parametrize("path", ["", "/models/tiny"])
def test_hugging_faces_client_classifies(server: RunningServer, tmp_path: Path, path: str) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(red_image(7))
    client = InferenceClient(model=server.url + path)
    found = client.image_classification(photo)
    assert (len(found), found[0].label) == (5, "red 7")
    assert found[0].score > found[1].score > 0
    assert client.image_classification(photo.read_bytes(), top_k=3) == found[:3]
    assert InferenceClient(base_url=server.url).image_classification(photo, function_to_apply="softmax") == found
    with pytest.raises(HfHubHTTPError, match="not an image in an accepted format"):
        client.image_classification(b"no image", top_k=3)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/models/none", b"x", 404, "unknown_model"),
        ("/", b"", 400, "empty_body"),
        ("/", b"no image", 415, "not_an_image"),
        ("/", {"inputs": ""}, 400, "empty_body"),
        ("/", {"inputs": text(1), "parameters": {"function_to_apply": "sigmoid"}}, 400, "invalid_parameter"),
        ("/", {"inputs": text(1), "parameters": {"topk": 1}}, 400, "invalid_request"),
        ("/", {"inputs": text(1), "options": {}}, 400, "invalid_request"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_answered_has_an_error(
    server: RunningServer, path: str, body: Any, status: int, code: str
) -> None:
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = server.client.post(path, **sent)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json()["error"]
