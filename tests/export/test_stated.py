"""A user's own network, described by flags, exported to every kind of file and served by every route.

It sees padded grey images of 24 x 40 and has one logit: it resembles the zoo's networks in nothing.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from torch import nn

from export import quantize, to_onnx, to_torch, to_trt, verify
from export.options import Stated
from export.recipe import RecipeError, plan
from export.reference import reference_logits
from export.report import Report
from export.samples import PHOTOS, image_paths, pixels
from models import manifest, networks, zoo
from models.manifest import Preprocessing
from models.weights import UnreachableError
from server.engine.backends.tensorrt import MODULES
from tests.reference import reference_pixels
from tests.server.running import RunningServer

HOW = Preprocessing(
    resize=40, crop=(24, 40), crop_mode="pad", interpolation="bicubic", channels="grey", mean=(0.45,), std=(0.25,)
)
STATED = [
    *("--crop", "24x40", "--crop-mode", "pad", "--interpolation", "bicubic"),
    *("--channels", "grey", "--mean", "0.45", "--std", "0.25"),
]
FILES = {"mine": 1e-3, "mine-fp16": 1e-2, "mine-int8": 0.1, "mine-torch": 1e-3}
"""How much the probabilities of each file may differ from PyTorch's."""
CAT = PHOTOS / "cat.jpg"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    found = networks.build("cifar_resnet20", 1)
    networks.see_grey(found)
    found.get_submodule("fc").get_parameter("weight").data *= 40  # so that probabilities are not all near one half
    return found


@pytest.fixture(scope="module")
def root(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network in FP32, FP16 and INT8, and as a program of PyTorch."""
    root, checkpoint = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(network.state_dict(), checkpoint)
    into, own = ["--repository", str(root)], ["cifar_resnet20", "--weights", str(checkpoint), "--num-classes", "1"]
    stated = [*own, *STATED, "--activation", "sigmoid", *into]
    assert to_onnx.main([*stated, "--name", "mine"]) == 0
    assert to_torch.main([*stated, "--name", "mine-torch"]) == 0
    gate = ["--min-agreement", "0", "--seconds", "0", *into]
    assert quantize.main(["mine", "--precision", "fp16", *gate]) == 0
    assert quantize.main(["mine", "--calibration", str(PHOTOS), "--method", "minmax", *gate]) == 0
    return root


def expected(network: nn.Module, crops: Any) -> float:
    """The mean probability over crops uint8[N, H, W, 3]."""
    return float((1 / (1 + np.exp(-reference_logits(network, crops, HOW)))).mean())


def test_every_file_says_what_was_stated(root: Path) -> None:
    for name in FILES:
        found = manifest.read(root / name / "1")
        assert (found.preprocessing, found.activation, found.input_shape) == (HOW, "sigmoid", (24, 40, 3)), name
        assert found.published_accuracy is None


def test_an_engine_is_built_of_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(MODULES["tensorrt_rtx"])
    arguments = ["mine", "--target", "sm89", "--max-batch", "1", "--repository", str(root)]
    assert to_trt.main(arguments) == 0, capsys.readouterr().err
    found = manifest.read(root / "mine-rtx-fp16-sm89" / "1")
    assert (found.preprocessing, found.activation) == (HOW, "sigmoid")
    shutil.rmtree(root / found.name)  # no CPU can serve it


def test_verify_compares_it_on_both_runtimes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["mine-fp16", "--repository", str(root), "--backend", "onnx,openvino", "--seconds", "0", "--json"]
    assert verify.main(arguments) == 0
    report = Report.model_validate_json(capsys.readouterr().out)
    assert [line.top1_agreement for line in report.lines] == [1.0] * 4


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[RunningServer]:
    with RunningServer(root, default_model="mine", grpc_port=0) as running:
        yield running


@pytest.mark.parametrize("name", FILES)
def test_every_file_answers_as_pytorch_and_pillow_do(server: RunningServer, network: nn.Module, name: str) -> None:
    for photo in image_paths(PHOTOS):
        (prediction,) = server.classify(photo.read_bytes(), model=name).json()["predictions"]
        probability = expected(network, reference_pixels(photo, HOW)[np.newaxis])
        assert prediction["probability"] == pytest.approx(probability, abs=FILES[name] + 5e-3), (
            photo
        )  # the server resamples in one step
        assert 0.01 < prediction["probability"] < 0.99


def test_ten_crops_and_batches_answer_alike(server: RunningServer, network: nn.Module) -> None:
    crops = pixels([CAT], HOW, 10)[0]
    (prediction,) = server.classify(CAT.read_bytes(), crops=10).json()["predictions"]
    assert prediction["probability"] == pytest.approx(expected(network, crops), abs=1e-4)
    answer = server.client.post("/classify/batch", files=[("file", CAT.read_bytes())]).json()["results"][0]
    single = server.classify(CAT.read_bytes()).json()
    assert answer["classification"]["predictions"] == single["predictions"]


def test_the_open_protocol_names_its_shape_and_takes_its_pixels(server: RunningServer, network: nn.Module) -> None:
    crop = pixels([CAT], HOW)[0]
    rest = triton_http.InferenceServerClient(urlsplit(server.url).netloc)
    grpc = triton_grpc.InferenceServerClient(server.grpc_address)
    try:
        assert rest.get_model_metadata("mine")["inputs"][0]["shape"] == [-1, 24, 40, 3]
        assert list(grpc.get_model_metadata("mine").inputs[0].shape) == [-1, 24, 40, 3]
        for client, module in ((rest, triton_http), (grpc, triton_grpc)):
            tensor = module.InferInput("images", crop.shape, "UINT8")
            tensor.set_data_from_numpy(crop)
            probabilities = client.infer("mine", [tensor]).as_numpy("probabilities")
            assert probabilities.shape == (1, 1)
            assert probabilities[0, 0] == pytest.approx(expected(network, crop), abs=1e-4)
    finally:
        rest.close()
        grpc.close()


def test_the_list_of_models_tells_it(server: RunningServer) -> None:
    listed = {model["name"]: model for model in server.client.get("/models").json()["models"]}
    assert Preprocessing.model_validate(listed["mine"]["preprocessing"]) == HOW
    assert listed["mine"]["activation"] == "sigmoid"


def test_what_is_assumed_of_ones_own_weights_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But not what the flags state, nor anything about the zoo's own weights."""
    torch.save(networks.build("cifar_resnet20", 10).state_dict(), tmp_path / "mine.pth")
    monkeypatch.setattr("export.command.add_export", lambda *_, **__: None)
    own = ["cifar_resnet20", "--weights", str(tmp_path / "mine.pth")]
    assert to_onnx.main(own) == 0
    said = capsys.readouterr().out
    assert "assumed about how mine.pth was trained" in said
    assert "--resize 32 --crop 32x32 --crop-mode centre --interpolation bilinear --channels rgb" in said
    assert "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225" in said
    assert to_onnx.main([*own, "--mean", "0.5", "--std", "0.5"]) == 0
    assert "--resize 32" in (said := capsys.readouterr().out)
    assert "--mean" not in said
    assert to_onnx.main([*own, "--resize", "40", *STATED]) == 0
    assert to_onnx.main(["resnet50"]) == 0
    assert "was trained" not in capsys.readouterr().out


def test_what_is_stated_is_not_said_of_another_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If no network is named and the default cannot be downloaded, an installed one is exported instead."""
    asked: list[str] = []

    def unreachable(network: str, _: object) -> None:
        asked.append(network)
        raise UnreachableError("out of reach")

    monkeypatch.setattr(to_onnx, "_export", unreachable)
    assert to_onnx.main(["--mean", "0.5", "--std", "0.5"]) == 1
    assert asked == [zoo.DEFAULT]
    assert "Exporting" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--crop", "32", "--resize", "36"], r"mine version 1 was exported with .*--crop 24x40.*another --name"),
        (["--activation", "softmax"], r"--activation sigmoid: export what you state"),
    ],
)
def test_a_model_that_is_there_is_not_taken_for_another(
    root: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize.main(["mine", "--precision", "fp16", *arguments, "--repository", str(root)]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_weights_that_see_grey_are_told_before_the_export(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    sigmoid = Stated(activation="sigmoid")
    recipe = plan("cifar_resnet20", checkpoint=tmp_path / "mine.pth", num_classes=1, stated=sigmoid)
    with pytest.raises(RecipeError, match="takes one channel: give --channels grey"):
        recipe.build(tmp_path / "mine.pth")


def test_weights_of_three_channels_may_have_been_trained_on_grey(tmp_path: Path) -> None:
    """They saw three equal channels, so the answer is the same."""
    colour = networks.build("cifar_resnet20", 10)
    torch.save(colour.state_dict(), tmp_path / "mine.pth")
    stated = Stated(channels="grey", mean=(0.5,), std=(0.25,))
    grey = plan("cifar_resnet20", checkpoint=tmp_path / "mine.pth", stated=stated).build(tmp_path / "mine.pth")
    pixels = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(grey(pixels), colour(pixels.expand(2, 3, 32, 32)))
