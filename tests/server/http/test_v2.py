"""The Open Inference Protocol over REST: with NVIDIA's own client, and with what other clients may send."""

import asyncio
import base64
import gzip
import http.client
import json
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from server.http.v2 import HEADER_LENGTH, MAX_JSON_BYTES
from tests import tiny
from tests.server.running import GatedServer, RunningServer, red_image, until

MAX_BODY_BYTES = 6 * 2**20
QUEUE_SIZE = 16
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves `tiny` in versions 1 and 2, `other`, and two ensembles: of equal pixels, and of different ones."""
    repository = tmp_path_factory.mktemp("repository")
    first = tiny.write(repository)
    tiny.write(repository, version=2)
    other = tiny.write(repository, "other", channel=1)
    small = tiny.write(repository, "small", crop=16)
    tiny.write_ensemble(repository, "alike", [first, other])
    tiny.write_ensemble(repository, "unlike", [first, small])
    tiny.write(repository, "garbled")
    (repository / "garbled/1/manifest.json").write_text("{")
    with RunningServer(
        repository,
        default_model="tiny",
        max_body_bytes=MAX_BODY_BYTES,
        queue_size=QUEUE_SIZE,
    ) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(urlsplit(server.url).netloc) as found:
        yield found


def encoded(*images: bytes, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("encoded", [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=object), binary_data=binary)
    return tensor


def pixels(*reds: int, binary: bool = True, side: int = 32) -> triton.InferInput:
    images = np.zeros((len(reds), side, side, 3), np.uint8)
    images[..., 0] = np.array(reds)[:, None, None]
    tensor = triton.InferInput("images", images.shape, "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return tensor


def best(result: Any) -> list[int]:
    found: list[int] = result.as_numpy("indices")[:, 0].tolist()
    return found


def test_the_server_and_its_models_say_what_they_are(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "resnet-serving"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    ready = {(name, version): client.is_model_ready(name, version) for name in ("tiny", "none") for version in "123"}
    assert ready == {(name, version): name == "tiny" and version != "3" for name, version in ready}
    found = client.get_model_metadata("tiny")
    assert (found["name"], found["versions"], found["platform"]) == ("tiny", ["1", "2"], "onnxruntime_onnx")
    assert found["inputs"] == [
        {"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]},
        {"name": "encoded", "datatype": "BYTES", "shape": [-1, 1]},
    ]
    assert [(each["name"], each["datatype"]) for each in found["outputs"]] == [
        ("probabilities", "FP32"),
        ("indices", "INT32"),
        ("labels", "BYTES"),
        ("logits", "FP32"),
    ]
    config = client.get_model_config("tiny", "1")
    assert config["max_batch_size"] == QUEUE_SIZE
    assert config["input"] == [
        {
            "name": "images",
            "data_type": "TYPE_UINT8",
            "dims": [32, 32, 3],
            "format": "FORMAT_NHWC",
            "optional": True,
        },
        {"name": "encoded", "data_type": "TYPE_STRING", "dims": [1], "format": "FORMAT_NONE", "optional": True},
    ]


def test_probes_have_bodies_as_kserve_reads_them(server: RunningServer) -> None:
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready")
    bodies = [server.client.get(path).json() for path in paths]
    assert bodies == [{"live": True}, {"ready": True}, *[{"name": "tiny", "ready": True}] * 2]


def test_an_ensemble_takes_pixels_where_its_members_take_the_same(client: triton.InferenceServerClient) -> None:
    alike = [each["name"] for each in client.get_model_metadata("alike")["inputs"]]
    unlike = [each["name"] for each in client.get_model_metadata("unlike")["inputs"]]
    assert (alike, unlike) == (["images", "encoded"], ["encoded"])
    assert client.get_model_config("alike")["max_batch_size"] == QUEUE_SIZE // 2
    assert set(client.infer("alike", [pixels(100)]).as_numpy("indices")[0, :2]) == {100, 0}
    assert best(client.infer("unlike", [encoded(red_image(9), red_image(8))])) == [9, 8]
    with pytest.raises(InferenceServerException, match="send one input of 'encoded'"):
        client.infer("unlike", [pixels(100)])


VIEWS = ("encoded", "images", "inception", "vgg")


def scaled(view: str, *reds: int, side: int = 32, binary: bool = True) -> triton.InferInput:
    """Pixels as Triton's examples scale them."""
    images = np.zeros((len(reds), side, side, 3), np.float32)
    images[..., 0] = np.array(reds)[:, None, None]
    images = images / 127.5 - 1 if view == "inception" else images - np.array((123, 117, 104), np.float32)
    tensor = triton.InferInput("images", images.shape, "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return tensor


def viewed(view: str, *reds: int) -> triton.InferInput:
    if view == "encoded":
        return encoded(*map(red_image, reds))
    return pixels(*reds) if view == "images" else scaled(view, *reds)


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_of_a_model_has_one_input_and_one_output(client: triton.InferenceServerClient, view: str) -> None:
    name = f"tiny:{view}"
    assert client.is_model_ready(name)
    found, config = client.get_model_metadata(name), client.get_model_config(name)
    assert (found["name"], config["name"]) == (name, name)
    kind = {"encoded": "BYTES", "images": "UINT8"}.get(view, "FP32")
    shape = [-1, 1] if view == "encoded" else [-1, 32, 32, 3]
    name_of_input = "encoded" if view == "encoded" else "images"
    assert found["inputs"] == [{"name": name_of_input, "datatype": kind, "shape": shape}]
    assert found["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, tiny.CLASSES]}]
    (configured,) = config["input"]
    assert (configured["dims"], configured["optional"]) == (shape[1:], False)
    assert configured["format"] == ("FORMAT_NONE" if view == "encoded" else "FORMAT_NHWC")
    reds = [0, 9, 255]
    result = client.infer(name, [viewed(view, *reds)])
    assert result.get_response()["model_name"] == name
    scores = result.as_numpy("scores")
    assert scores.argmax(1).tolist() == reds
    assert scores.sum(1) == pytest.approx(1)
    output = triton.InferRequestedOutput("scores", class_count=2)
    words = client.infer(name, [viewed(view, *reds)], outputs=[output]).as_numpy("scores")
    assert [word.decode().split(":")[1:] for word in words[:, 0]] == [[str(red), f"red {red}"] for red in reds]


def test_a_views_scores_are_the_models_probabilities(client: triton.InferenceServerClient) -> None:
    whole = client.infer("tiny", [pixels(77)], parameters={"top_k": 9})
    scores = client.infer("tiny:images", [pixels(77)]).as_numpy("scores")
    np.testing.assert_allclose(scores[0, whole.as_numpy("indices")[0]], whole.as_numpy("probabilities")[0], atol=1e-6)


def test_a_view_takes_json_too(client: triton.InferenceServerClient) -> None:
    scores = client.infer("tiny:vgg", [scaled("vgg", 5, binary=False)]).as_numpy("scores")
    assert scores.argmax(1).tolist() == [5]


def test_an_ensemble_has_views_too(client: triton.InferenceServerClient) -> None:
    scores = client.infer("alike:images", [pixels(100)]).as_numpy("scores")
    assert set(scores[0].argsort()[-2:]) == {100, 0}
    assert client.infer("unlike:encoded", [encoded(red_image(9))]).as_numpy("scores").argmax() == 9
    assert not client.is_model_ready("unlike:images")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("tiny:else", pixels(1), "there is no 'tiny:else'; there are tiny:encoded, tiny:images"),
        ("tiny:", pixels(1), "there is no 'tiny:'"),
        ("none:images", pixels(1), "no model 'none'"),
        ("tiny:images", encoded(red_image(1)), "send one input of 'images', not 'encoded'"),
        ("tiny:images", scaled("vgg", 1), "is UINT8, not FP32"),
        ("tiny:vgg", scaled("inception", 255), None),
        ("tiny:inception", scaled("vgg", 255), "pixels scaled so are -1 to 1; these are -117 to 132"),
    ],
)
def test_what_a_view_does_not_take_is_refused(
    client: triton.InferenceServerClient, name: str, tensor: triton.InferInput, message: str | None
) -> None:
    if message is None:  # these values may also come from another scaling: only the client can know
        client.infer(name, [tensor])
        return
    with pytest.raises(InferenceServerException, match=message):
        client.infer(name, [tensor])


@pytest.mark.parametrize("binary", [True, False])
def test_each_image_of_a_batch_has_its_answer_in_its_place(
    client: triton.InferenceServerClient, *, binary: bool
) -> None:
    reds = [3, 250, 0, 77, 3]
    result = client.infer("tiny", [pixels(*reds, binary=binary)], request_id="mine")
    assert best(result) == reds
    assert result.as_numpy("labels")[:, 0].tolist() == [f"red {red}".encode() for red in reds]
    assert result.get_response()["id"] == "mine"
    assert result.get_response()["model_version"] == "2"
    assert result.get_response()["parameters"] == {"random_weights": False}


def test_compressed_images_are_decoded(client: triton.InferenceServerClient) -> None:
    assert best(client.infer("tiny", [encoded(red_image(5), red_image(6))], model_version="1")) == [5, 6]
    texts = [base64.b64encode(red_image(red)) for red in (7, 8)]
    assert best(client.infer("tiny", [encoded(*texts, binary=False)])) == [7, 8]


def test_an_answer_is_that_of_classify(model_repository: Path) -> None:
    photos = [(ROOT / "export/photos" / name).read_bytes() for name in ("cat.jpg", "espresso.jpg", "rocket.jpg")]
    with RunningServer(model_repository) as server:
        expected = [server.classify(photo).json()["predictions"] for photo in photos]
        with triton.InferenceServerClient(urlsplit(server.url).netloc) as client:
            result = client.infer("efficientnet_lite0", [encoded(*photos)])
    classes: NDArray[np.int32] = result.as_numpy("indices")
    assert classes.tolist() == [[each["class_id"] for each in predictions] for predictions in expected]
    names = [[each["label"].encode() for each in predictions] for predictions in expected]
    assert result.as_numpy("labels").tolist() == names
    probabilities = [[each["probability"] for each in predictions] for predictions in expected]
    # In a batch of another size, the runtime adds in another order.
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities, atol=1e-5)


def test_outputs_come_as_they_are_requested(client: triton.InferenceServerClient) -> None:
    outputs = [
        triton.InferRequestedOutput("labels", binary_data=False),
        triton.InferRequestedOutput("probabilities", binary_data=True),
    ]
    result = client.infer("tiny", [pixels(9)], outputs=outputs, parameters={"top_k": 100})
    labels, probabilities = result.get_response()["outputs"]
    assert (labels["name"], labels["shape"], labels["data"][0]) == ("labels", [1, 100], "red 9")
    assert (probabilities["name"], probabilities["parameters"]["binary_data_size"]) == ("probabilities", 400)
    assert result.as_numpy("probabilities").shape == (1, 100)
    assert result.as_numpy("indices") is None


def test_the_classification_extension_answers_in_words(client: triton.InferenceServerClient) -> None:
    output = triton.InferRequestedOutput("probabilities", class_count=2)
    result = client.infer("tiny", [pixels(9, 200)], outputs=[output])
    words = [word.decode().split(":") for word in result.as_numpy("probabilities").ravel()]
    assert [int(index) for _, index, _ in words[::2]] == [9, 200]
    assert all(label == f"red {index}" for _, index, label in words)
    assert all(0 <= float(probability) <= 1 for probability, _, _ in words)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_is_read(client: triton.InferenceServerClient, algorithm: str) -> None:
    result = client.infer(
        "tiny", [pixels(9)], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    assert best(result) == [9]


def test_the_asynchronous_clients_are_answered(server: RunningServer, client: triton.InferenceServerClient) -> None:
    asked = [client.async_infer("tiny", [pixels(red)]) for red in range(4)]
    assert [best(each.get_result()) for each in asked] == [[red] for red in range(4)]

    async def aio() -> list[list[int]]:
        async with tritonclient.http.aio.InferenceServerClient(urlsplit(server.url).netloc) as found:
            assert await found.is_model_ready("tiny")
            assert (await found.get_model_repository_index())[0]["name"] == "alike"
            return [best(each) for each in await asyncio.gather(*(found.infer("tiny", [pixels(n)]) for n in range(8)))]

    assert asyncio.run(aio()) == [[red] for red in range(8)]


def test_the_index_lists_what_is_served_and_what_was_refused(client: triton.InferenceServerClient) -> None:
    index = {(each["name"], each["version"]): each for each in client.get_model_repository_index()}
    assert index["tiny", "2"]["state"] == "READY"
    assert index["garbled", "1"]["state"] == "UNAVAILABLE"
    assert "manifest.json" in index["garbled", "1"]["reason"]


def test_the_index_can_be_of_what_is_ready(server: RunningServer) -> None:
    index = server.client.post("/v2/repository/index", json={"ready": True}).json()
    assert {each["state"] for each in index} == {"READY"}


def test_statistics_count_requests_and_images(client: triton.InferenceServerClient) -> None:
    def statistics() -> dict[str, Any]:
        (found,) = client.get_inference_statistics("other")["model_stats"]
        assert isinstance(found, dict)
        return found

    before = statistics()
    client.infer("other", [pixels(1, 2, 3)])
    with pytest.raises(InferenceServerException):
        client.infer("other", [encoded(b"no image")])
    after = statistics()
    assert after["inference_count"] == before["inference_count"] + 3
    assert after["execution_count"] > before["execution_count"]
    stages = {name: after["inference_stats"][name] for name in after["inference_stats"]}
    increase = {name: stage["count"] - before["inference_stats"][name]["count"] for name, stage in stages.items()}
    answered = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert {name: increase[name] for name in answered} == dict.fromkeys(answered, 1)  # requests, as Triton counts them
    assert (increase["fail"], increase["cache_hit"]) == (1, 0)
    assert stages["compute_infer"]["ns"] > 0
    assert stages["fail"]["ns"] > 0
    assert stages["success"]["ns"] > stages["compute_infer"]["ns"]
    assert {each["name"] for each in client.get_inference_statistics()["model_stats"]} >= {"tiny", "other", "alike"}


def test_statistics_tell_versions_apart(server: RunningServer, client: triton.InferenceServerClient) -> None:
    def counts(name: str, version: str = "") -> dict[str, int]:
        found = client.get_inference_statistics(name, version)["model_stats"]
        return {f"{each['name']} {each['version']}": each["inference_stats"]["success"]["count"] for each in found}

    before = counts("tiny")
    client.infer("tiny", [pixels(1)], model_version="1")
    assert counts("tiny") == {"tiny 1": before["tiny 1"] + 1, "tiny 2": before["tiny 2"]}
    assert counts("tiny", "2") == {"tiny 2": before["tiny 2"]}
    assert counts("tiny:images", "2") == {"tiny:images 2": before["tiny 2"]}
    assert counts("").items() >= counts("tiny").items()
    assert server.metric("serving_requests_total", model="tiny", version="1", code="ok") == before["tiny 1"] + 1


def test_models_are_unloaded_and_loaded(client: triton.InferenceServerClient) -> None:
    client.unload_model("small")
    assert not client.is_model_ready("small")
    states = {each["name"]: each["state"] for each in client.get_model_repository_index()}
    assert (states["small"], states["unlike"]) == ("UNAVAILABLE", "UNAVAILABLE")  # an ensemble lacks it, too
    assert client.is_server_ready()
    client.load_model("small")
    assert client.is_model_ready("small")
    assert client.is_model_ready("unlike")
    assert best(client.infer("small", [pixels(5, side=16)])) == [5]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_change_nothing(server: RunningServer, site: str) -> None:
    refused = server.client.post("/v2/repository/models/other/unload", headers={"Sec-Fetch-Site": site})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert server.client.get("/v2/models/other/ready").status_code == 200


def test_what_cannot_be_loaded_is_said(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"manifest\.json"):
        client.load_model("garbled")
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="no model 'none'"):
            change("none")
    with pytest.raises(InferenceServerException, match="without parameters"):
        client.load_model("tiny", config="{}")
    with pytest.raises(InferenceServerException, match="unloaded alone"):
        client.unload_model("tiny", unload_dependents=True)
    assert client.is_model_ready("tiny")


def test_the_clients_timeout_is_the_deadline(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as raised:
        client.infer("tiny", [pixels(1)], timeout=1)
    assert raised.value.status() == "504"
    assert best(client.infer("tiny", [pixels(1)], timeout=60_000_000, priority=1)) == [1]


def infer_json(**changes: object) -> dict[str, Any]:
    image = base64.b64encode(red_image(1)).decode()
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": [1], "data": [image]}
    return {"inputs": [tensor], **changes}


def _input(**changes: object) -> dict[str, Any]:
    return infer_json(inputs=[{**infer_json()["inputs"][0], **changes}])


def test_plain_json_is_enough(server: RunningServer) -> None:
    answer = server.client.post("/v2/models/tiny/infer", json=infer_json(id="7", parameters={"top_k": 2})).json()
    assert (answer["model_name"], answer["id"]) == ("tiny", "7")
    outputs = {each["name"]: each for each in answer["outputs"]}
    assert outputs["labels"]["data"][0] == "red 1"
    assert outputs["probabilities"]["shape"] == [1, 2]


BAD: dict[str, tuple[Any, int, str]] = {
    "nothing": (b"", 400, "empty_body"),
    "no JSON": (b"{", 400, "invalid_request"),
    "no object": ([], 400, "invalid_request"),
    "no inputs": ({}, 400, "invalid_request"),
    "nested too deep": (b'{"inputs":' + b"[" * 100_000, 400, "invalid_request"),
    "an empty list of inputs": ({"inputs": []}, 400, "invalid_request"),
    "an unknown input": (_input(name="else"), 400, "invalid_request"),
    "a wrong datatype": (_input(datatype="UINT8"), 400, "invalid_request"),
    "no images": (_input(shape=[0], data=[]), 400, "invalid_request"),
    "a wrong shape": (_input(shape=[1, 2]), 400, "invalid_request"),
    "no shape": (_input(shape=[]), 400, "invalid_request"),
    "a negative shape": (_input(shape=[-1]), 400, "invalid_request"),
    "a shape of billions": (_input(shape=[2**62]), 400, "invalid_request"),
    "fewer elements than the shape": (_input(shape=[2]), 400, "invalid_request"),
    "no Base64": (_input(data=["%"]), 400, "invalid_request"),
    "neither data nor binary": ({"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1]}]}, 400, ""),
    "binary data that is not there": (_input(parameters={"binary_data_size": 9}), 400, "invalid_request"),
    "shared memory": (
        {
            "inputs": [
                {
                    "name": "encoded",
                    "datatype": "BYTES",
                    "shape": [1],
                    "parameters": {"shared_memory_region": "mine", "shared_memory_byte_size": 5},
                }
            ]
        },
        400,
        "invalid_request",
    ),
    "an unknown output": (infer_json(outputs=[{"name": "saliency"}]), 400, "invalid_request"),
    "an output twice": (infer_json(outputs=[{"name": "labels"}] * 2), 400, "invalid_request"),
    "top_k of 0": (infer_json(parameters={"top_k": 0}), 400, "invalid_parameter"),
    "top_k of true": (infer_json(parameters={"top_k": True}), 400, "invalid_parameter"),
    "a timeout that is no number": (infer_json(parameters={"timeout": "soon"}), 400, "invalid_parameter"),
    "classification of labels": (
        infer_json(outputs=[{"name": "labels", "parameters": {"classification": 2}}]),
        400,
        "invalid_parameter",
    ),
    "an output in shared memory": (
        infer_json(outputs=[{"name": "labels", "parameters": {"shared_memory_region": "mine"}}]),
        400,
        "invalid_request",
    ),
    "an unknown parameter": (infer_json(parameters={"topk": 3}), 400, "invalid_parameter"),
    "an unknown parameter of an input": (_input(parameters={"content_type": "x"}), 400, "invalid_parameter"),
    "an unknown parameter of an output": (
        infer_json(outputs=[{"name": "labels", "parameters": {"dtype": "x"}}]),
        400,
        "invalid_parameter",
    ),
    "binary data of maybe": (
        infer_json(outputs=[{"name": "labels", "parameters": {"binary_data": 1}}]),
        400,
        "invalid_parameter",
    ),
    "a sequence": (infer_json(parameters={"sequence_id": 7}), 400, "invalid_parameter"),
    "an unknown field": (infer_json(models=["tiny"]), 400, "invalid_request"),
    "another model than the path's": (infer_json(model_name="other"), 400, "invalid_request"),
    "too much JSON": (b" " * (MAX_JSON_BYTES + 1), 413, "body_too_large"),
    "too much": (b" " * (MAX_BODY_BYTES + 1), 413, "body_too_large"),
    "no image": (_input(data=["QQ=="]), 415, "not_an_image"),
    "an empty element": (_input(data=[""]), 400, "empty_body"),
}


@pytest.mark.parametrize("case", BAD)
def test_each_mistake_has_the_protocols_error(server: RunningServer, case: str) -> None:
    body, status, code = BAD[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = server.client.post("/v2/models/tiny/infer", content=content)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]
    assert response.json()["code"] in (code or "invalid_request")


def test_what_clients_always_send_is_accepted(server: RunningServer) -> None:
    """KServe's client sends the model's name, PyTriton's and Triton's clients the rest."""
    nothing = {"sequence_id": 0, "sequence_start": False, "sequence_end": False, "priority": 0, "timeout": 0}
    response = server.client.post("/v2/models/tiny/infer", json=infer_json(model_name="tiny", parameters=nothing))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_shared_memory_is_refused_and_not_ignored(server: RunningServer, kind: str) -> None:
    region = {"key": "/mine", "offset": 0, "byte_size": 64}
    refused = server.client.post(f"/v2/{kind}sharedmemory/region/mine/register", json=region)
    assert (refused.status_code, refused.json()["code"]) == (501, "not_implemented")
    assert "does not support shared memory" in refused.json()["error"]
    assert server.client.post(f"/v2/{kind}sharedmemory/unregister").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/tiny/versions/x", 404),
        ("GET", "/v2/models/tiny/versions/9", 404),
        ("GET", "/v2/models/tiny/versions/" + "9" * 5000, 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("POST", "/v2/models/none/infer", 404),
    ],
)
def test_other_paths_have_it_too(server: RunningServer, method: str, path: str, status: int) -> None:
    response = server.client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "1", "", "\u0661"])
def test_a_wrong_length_of_the_json_is_refused(server: RunningServer, length: str) -> None:
    headers = [(HEADER_LENGTH.encode(), length.encode())]
    response = server.client.post("/v2/models/tiny/infer", content=json.dumps(infer_json()), headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")


def test_bytes_that_belong_to_no_input_are_refused(server: RunningServer) -> None:
    head = json.dumps(infer_json()).encode()
    headers = {HEADER_LENGTH: str(len(head))}
    response = server.client.post("/v2/models/tiny/infer", content=head + b"more", headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")


def test_a_batch_is_all_or_its_first_error(server: RunningServer, client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="image 2 of 3: the body is not an image"):
        client.infer("tiny", [encoded(red_image(1), b"no image", red_image(2))])
    until(lambda: server.metric("serving_pending_requests") == 0)
    assert best(client.infer("tiny", [pixels(*range(QUEUE_SIZE))])) == list(range(QUEUE_SIZE))
    with pytest.raises(InferenceServerException, match=f"1 to {QUEUE_SIZE} images"):
        client.infer("tiny", [pixels(*range(QUEUE_SIZE + 1))])


@pytest.mark.parametrize(
    ("encoding", "content", "status", "code"),
    [
        ("gzip", gzip.compress(bytes(200 * 2**20)), 413, "body_too_large"),
        ("deflate", zlib.compress(bytes(200 * 2**20)), 413, "body_too_large"),
        ("gzip", gzip.compress(b"{}")[:-4], 400, "invalid_request"),
        ("gzip", gzip.compress(b"{}") + b"more", 400, "invalid_request"),
        ("deflate", b"no zlib", 400, "invalid_request"),
        ("br", b"whatever", 415, "unsupported_encoding"),
    ],
    ids=["a bomb", "another", "an end that lacks", "a rest", "nonsense", "an unknown one"],
)
def test_a_content_encoding_is_bounded(
    server: RunningServer, encoding: str, content: bytes, status: int, code: str
) -> None:
    response = server.client.post("/v2/models/tiny/infer", content=content, headers={"Content-Encoding": encoding})
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_a_client_that_leaves_frees_its_places(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with GatedServer(tmp_path, max_batch=1, queue_size=8) as server, server.hold(1) as let_go:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
        image = base64.b64encode(red_image(1)).decode()
        tensor = {"name": "encoded", "datatype": "BYTES", "shape": [8], "data": [image] * 8}
        connection.request("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}))
        until(lambda: server.batches() == 1 and server.pending() == 8)
        assert server.client.post("/v2/models/tiny/infer", json=infer_json()).status_code == 429
        connection.close()
        until(lambda: server.pending() == 1)
        let_go()
        until(lambda: server.pending() == 0)
        assert server.batches() == 1
        assert server.metric("serving_requests_total", code="client_closed") == 1


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_PARAMETERS = st.dictionaries(
    st.sampled_from(["top_k", "timeout", "priority", "binary_data_output", "binary_data_size", "classification", "x"]),
    _JSON | st.integers(0, 200),
    max_size=3,
)
_INPUT = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["images", "encoded"]) | _JSON,
        "datatype": st.sampled_from(["UINT8", "BYTES", "FP32"]) | _JSON,
        "shape": st.sampled_from([[1], [1, 1], [2], [1, 32, 32, 3]]) | _JSON,
    },
    optional={
        "data": st.sampled_from([[0] * 3072, [base64.b64encode(red_image(4)).decode()]]) | _JSON,
        "parameters": _PARAMETERS | _JSON,
    },
)
_REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(_INPUT, max_size=2) | _JSON},
    optional={
        "id": st.text(max_size=4) | _JSON,
        "parameters": _PARAMETERS | _JSON,
        "outputs": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["probabilities", "indices", "labels"]) | _JSON},
                optional={"parameters": _PARAMETERS | _JSON},
            ),
            max_size=3,
        ),
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=_REQUEST | _JSON, binary=st.binary(max_size=40), length=st.sampled_from(["right", "none", "short"]))
def test_no_body_is_answered_500(server: RunningServer, request: Any, binary: bytes, length: str) -> None:
    head = json.dumps(request).encode()
    lengths = {"right": len(head), "short": len(head) // 2}
    headers = {HEADER_LENGTH: str(lengths[length])} if length in lengths else {}
    content = head if length == "none" else head + binary
    response = server.client.post("/v2/models/tiny/infer", content=content, headers=headers)
    assert response.status_code in (200, 400, 415, 422, 504), response.text
    assert response.status_code == 200 or response.json()["error"]


def test_the_raw_form_of_other_clients_is_understood(server: RunningServer) -> None:
    """Assembled by hand from the protocol's text, so that client and server cannot share a mistake."""
    stream = BytesIO()
    Image.new("RGB", (32, 32), (44, 0, 0)).save(stream, "PNG")
    element = struct.pack("<I", len(stream.getvalue())) + stream.getvalue()
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "encoded",
                    "datatype": "BYTES",
                    "shape": [1, 1],
                    "parameters": {"binary_data_size": len(element)},
                }
            ],
            "outputs": [{"name": "indices", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {HEADER_LENGTH: str(len(head))}
    response = server.client.post("/v2/models/tiny/infer", content=head + element, headers=headers)
    assert response.headers["content-type"] == "application/octet-stream"
    answer = response.content[int(response.headers[HEADER_LENGTH]) :]
    assert struct.unpack("<5i", answer)[0] == 44
