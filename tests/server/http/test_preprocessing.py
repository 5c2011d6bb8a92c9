"""Models with unusual preprocessing, in a real server."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.manifest import Preprocessing
from tests import tiny
from tests.server.running import RunningServer


def preprocessing(**changes: Any) -> Preprocessing:
    usual = {"resize": 40, "crop": (20, 40), "interpolation": "bilinear", "mean": (0.8,) * 3, "std": (0.5,) * 3}
    return Preprocessing.model_validate(usual | changes)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves a model for each way to fit an image, and two whose probabilities are independent, alone and together."""
    repository = tmp_path_factory.mktemp("repository")
    for mode in ("centre", "squash", "pad"):
        tiny.write(repository, mode, preprocessing=preprocessing(crop_mode=mode))
    tiny.write(repository, "nearest", preprocessing=preprocessing(interpolation="nearest", crop_mode="squash"))
    several = [
        tiny.write(repository, "own", activation="sigmoid"),
        tiny.write(repository, "own-green", activation="sigmoid", channel=1),
    ]
    tiny.write_ensemble(repository, "both", several)
    tiny.write_ensemble(repository, "mixed", [several[0], tiny.write(repository, "usual")])
    with RunningServer(repository, default_model="own") as running:
        yield running


def image(pixels: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def red_rows(*reds: int) -> bytes:
    """80 x 80 pixels, in bands of equal height."""
    rows = np.repeat(reds, 80 // len(reds))
    pixels = np.zeros((80, 80, 3), np.uint8)
    pixels[..., 0] = rows[:, np.newaxis]
    return image(pixels)


@pytest.mark.parametrize(
    ("model", "red"),
    [
        ("centre", 100),  # the middle 40 rows
        ("squash", 70),  # all of them: the mean of 40 and 100
        ("nearest", 70),
        ("pad", (70 + 204) // 2),  # 20 x 20 pixels of the image, and beside them as many of the mean colour
    ],
)
def test_an_image_is_fitted_as_its_model_wants_it(server: RunningServer, model: str, red: int) -> None:
    answer = server.classify(red_rows(40, 100, 100, 40), model=model).json()
    assert abs(answer["predictions"][0]["class_id"] - red) <= 1  # the bands' edges are blurred


def test_independent_probabilities_are_ranked_and_do_not_sum_to_one(server: RunningServer) -> None:
    """The logits of tests/tiny.py for a red of 1 are `2 c - c**2`."""
    predictions = server.classify(red_rows(1), model="own", top_k=4).json()["predictions"]
    assert [each["class_id"] for each in predictions] in ([1, 0, 2, 3], [1, 2, 0, 3])
    expected = 1 / (1 + np.exp([-1.0, 0.0, 0.0, 3.0]))
    np.testing.assert_allclose([each["probability"] for each in predictions], expected, atol=1e-6)


@pytest.mark.parametrize(("model", "crops"), [("own", 10), ("both", 1), ("both", 10)])
def test_their_means_are_of_the_probabilities(server: RunningServer, model: str, crops: int) -> None:
    """Green is 0 everywhere: its logits are 0 and below."""
    predictions = server.classify(red_rows(1), model=model, crops=crops, top_k=2).json()["predictions"]
    red, green = 1 / (1 + np.exp([-1.0, 0.0])), 1 / (1 + np.exp([1.0, 0.0]))  # classes 1 and 0
    expected = red if model == "own" else (red + green) / 2
    found = {each["class_id"]: each["probability"] for each in predictions}
    assert found[1] == pytest.approx(expected[0], abs=1e-6)
    assert found.get(0, found.get(2)) == pytest.approx(expected[1], abs=1e-6)


def test_members_that_have_no_common_mean_are_refused(server: RunningServer) -> None:
    refused = server.client.get("/models").json()["refused"]
    assert "some of its members give softmax, others sigmoid" in refused["mixed version 1"]


def test_the_open_protocol_names_height_before_width(server: RunningServer) -> None:
    inputs = server.client.get("/v2/models/pad").json()["inputs"]
    assert [each["shape"] for each in inputs if each["name"] == "images"] == [[-1, 20, 40, 3]]
