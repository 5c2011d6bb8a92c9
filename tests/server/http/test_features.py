"""What a request may get besides classes, from the same forward pass: logits, features and heat maps."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image
from tritonclient.utils import InferenceServerException

from models.manifest import MAPPED_CLASSES, Preprocessing
from server.images.orientation import exif
from server.images.preprocess import upright
from tests import tiny
from tests.server.running import RunningServer, red_image

MARGIN = Preprocessing(resize=32, crop=16, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
"""The model sees half of a photo's height."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    members = [tiny.write(repository, "whole", extras=True), tiny.write(repository, "none")]
    tiny.write(repository, "middle", preprocessing=MARGIN, extras=True)
    tiny.write_ensemble(repository, "both", members)
    with RunningServer(repository, default_model="whole", cache_entries=10, grpc_port=0) as running:
        yield running


def ask(server: RunningServer, image: bytes, **parameters: object) -> Any:
    response = server.classify(image, **parameters)
    assert response.status_code == 200, response.text
    return response.json()


def photo(size: tuple[int, int], spot: tuple[int, int, int, int], orientation: int = 1) -> bytes:
    """A black photo with a red spot, upright as given here, but stored as by a camera in this orientation."""
    seen = Image.new("RGB", size)
    seen.paste((255, 0, 0), spot)
    turned = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)  # the inverse
    stream = BytesIO()
    upright(seen, turned).save(stream, "PNG", exif=b"Exif\0\0" + exif(orientation))
    return stream.getvalue()


def centre_of(answer: Any, size: tuple[int, int]) -> tuple[float, float]:
    """The centre of the best class's map, in pixels of the photo."""
    left, top, right, bottom = answer["heatmap"]["box"]
    values = np.array(answer["heatmap"]["maps"][0])
    rows, columns = values.shape
    x = left + (right - left) * ((values.sum(0) * (np.arange(columns) + 0.5)).sum() / values.sum()) / columns
    y = top + (bottom - top) * ((values.sum(1) * (np.arange(rows) + 0.5)).sum() / values.sum()) / rows
    return float(x * size[0]), float(y * size[1])


def test_what_is_not_included_is_not_there(server: RunningServer) -> None:
    assert ask(server, red_image(7)).keys().isdisjoint({"logits", "features", "heatmap"})


def test_logits_features_and_heat_maps_are_of_the_pass_that_gave_the_classes(server: RunningServer) -> None:
    answer = ask(server, red_image(200), include="logits,features,heatmap", top_k=7)
    assert answer["predictions"][0]["class_id"] == 200
    assert answer["logits"][200] == max(answer["logits"]) == 200**2
    assert answer["features"] == [200, 0, 0]
    assert answer["heatmap"]["class_ids"] == [each["class_id"] for each in answer["predictions"]][:MAPPED_CLASSES]
    assert answer["heatmap"]["box"] == [0, 0, 1, 1]
    means = np.array(answer["heatmap"]["maps"]).mean((1, 2))
    assert means.tolist() == [2 * class_id * 200 for class_id in answer["heatmap"]["class_ids"]]
    assert len(ask(server, red_image(200), include="heatmap", top_k=2)["heatmap"]["maps"]) == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heat_map_lies_where_the_object_is_in_the_upright_photo(server: RunningServer, orientation: int) -> None:
    """For a model that sees the whole photo, and one that crops it on all sides."""
    size, spot = (90, 60), (50, 20, 56, 26)
    for model in ("whole", "middle"):
        answer = ask(server, photo(size, spot, orientation), include="heatmap", model=model)
        assert centre_of(answer, size) == pytest.approx((53, 23), abs=1.5)


def test_the_photo_comes_upright_with_its_heat_map_where_png_is_accepted(server: RunningServer) -> None:
    size, spot = (90, 60), (50, 20, 56, 26)
    response = server.client.post(
        "/classify",
        params={"include": "heatmap", "model": "middle"},
        headers={"Accept": "image/png"},
        content=photo(size, spot, 6),
    )
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-request-id"]
    picture = np.asarray(Image.open(BytesIO(response.content)).convert("RGB")).astype(int)
    assert picture.shape == (60, 90, 3)
    assert picture[23, 53, 1] > 100  # red is painted over
    assert (picture[:14].max(), picture[:, :20].max()) == (0, 0)  # what was not seen stays as it was


def test_features_are_bytes_in_msgpack(server: RunningServer) -> None:
    headers = {"Accept": "application/msgpack"}
    response = server.client.post("/classify", params={"include": "features"}, headers=headers, content=red_image(9))
    assert np.frombuffer(msgspec.msgpack.decode(response.content)["features"], "<f4").tolist() == [9, 0, 0]


def test_embed_answers_features_alone(server: RunningServer) -> None:
    answer = server.client.post("/embed", content=red_image(9)).json()
    assert (answer["model"], answer["features"]) == ("whole", [9, 0, 0])
    assert "predictions" not in answer
    refused = server.client.post("/embed", params={"top_k": 3}, content=red_image(9))
    assert refused.json()["code"] == "invalid_parameter"


def test_each_image_of_a_batch_has_its_own(server: RunningServer) -> None:
    files = [("file", (f"{red}.png", red_image(red))) for red in (3, 200)]
    answer = server.client.post("/classify/batch", params={"include": "features"}, files=files).json()
    assert [each["classification"]["features"] for each in answer["results"]] == [[3, 0, 0], [200, 0, 0]]


def test_what_is_remembered_of_an_image_does_not_answer_for_more(server: RunningServer) -> None:
    for _ in range(2):
        ask(server, red_image(77))
        assert ask(server, red_image(77), include="features")["features"] == [77, 0, 0]


@pytest.mark.parametrize(
    ("parameters", "code", "reason"),
    [
        ({"model": "none", "include": "features"}, "unsupported_by_model", "export it again"),
        ({"model": "none", "include": "heatmap"}, "unsupported_by_model", "does not end in global average pooling"),
        ({"model": "both", "include": "features"}, "unsupported_by_model", "ask one of them"),
        ({"crops": 10, "include": "logits"}, "invalid_parameter", "leave out crops"),
        ({"include": "feature"}, "invalid_parameter", "include: name some of logits, features, heatmap"),
        ({"include": "features, heatmap"}, "invalid_parameter", "separated by commas alone"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(
    server: RunningServer, parameters: dict[str, object], code: str, reason: str
) -> None:
    response = server.classify(red_image(7), **parameters)
    assert (response.status_code, response.json()["code"]) == (400, code)
    assert reason in response.json()["detail"]


def test_logits_are_had_of_every_network(server: RunningServer) -> None:
    assert ask(server, red_image(7), model="none", include="logits")["logits"][7] == 49


EXTRAS = {"logits": [256], "features": [3], "activation_maps": [-1, 16, 16], "activation_boxes": [4]}


def test_they_are_outputs_of_the_open_inference_protocol(server: RunningServer) -> None:
    image, size = photo((90, 60), (50, 20, 56, 26), 6), (90, 60)
    with triton_http.InferenceServerClient(urlsplit(server.url).netloc) as client:
        listed = {each["name"]: each["shape"][1:] for each in client.get_model_metadata("middle")["outputs"]}
        assert {name: listed[name] for name in EXTRAS} == EXTRAS
        assert "features" not in {each["name"] for each in client.get_model_metadata("none")["outputs"]}
        tensor = triton_http.InferInput("encoded", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([image], object))
        outputs = [triton_http.InferRequestedOutput(name) for name in EXTRAS]
        over_rest = client.infer("middle", [tensor], outputs=outputs)
        plain = client.infer("middle", [tensor])
        assert [each["name"] for each in plain.get_response()["outputs"]] == ["probabilities", "indices", "labels"]
    with triton_grpc.InferenceServerClient(server.grpc_address) as client:
        tensor = triton_grpc.InferInput("encoded", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([image], object))
        outputs = [triton_grpc.InferRequestedOutput(name) for name in EXTRAS]
        over_grpc = client.infer("middle", [tensor], outputs=outputs)
        with pytest.raises(InferenceServerException, match="export it again"):
            client.infer("none", [tensor], outputs=outputs[1:2])
    answer = ask(server, image, model="middle", include="logits,features,heatmap")
    for result in (over_rest, over_grpc):
        assert result.as_numpy("logits")[0].tolist() == pytest.approx(answer["logits"])
        assert result.as_numpy("features")[0].tolist() == pytest.approx(answer["features"])
        assert result.as_numpy("activation_maps")[0].tolist() == answer["heatmap"]["maps"]
        assert result.as_numpy("activation_boxes")[0].tolist() == pytest.approx(answer["heatmap"]["box"])
    assert centre_of(answer, size) == pytest.approx((53, 23), abs=1.5)
