"""People's own ONNX files, made into models: each answers as the file itself does in ONNX Runtime."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.utils import Extractor
from torch import nn

from export import backends, ensemble, from_onnx, onnx_file, quantize, repository, splice, to_trt, verify
from export.original import Original
from export.samples import PHOTOS
from models.errors import ExpectedError
from models.manifest import LOGITS_NAME, Manifest
from models.weights import sha256_of
from server.engine.backends import Outputs
from tests.export import onnx_files
from tests.export.drafts import everything
from tests.export.onnx_files import CLASSES, SIDE, Averaged, Pixels, Small, Tokens, WithFeatures, export, script

NAME = "theirs"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = np.random.default_rng(7).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)

Make = Callable[[Path], Path]


@pytest.fixture(scope="module", autouse=True)
def frames() -> Iterator[None]:
    """Export the graph around a network only once for all tests that need the same."""
    known: dict[tuple[object, ...], onnx.ModelProto] = {}
    original = splice.frame

    def frame(*arguments: object) -> onnx_ir.Model:
        if arguments not in known:
            known[arguments] = onnx_ir.to_proto(original(*arguments))  # type: ignore[arg-type]
        return onnx_ir.from_proto(known[arguments])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "frame", frame)
        yield


def run(path: Path, root: Path, *arguments: str, name: str = NAME) -> int:
    return from_onnx.main([str(path), "--name", name, "--repository", str(root), *arguments])


def scores(path: Path, pixels: NDArray[np.generic], *, frozen: int | None = None) -> NDArray[np.float64]:
    """The unchanged file's own answers: float64[N, classes]."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    size = frozen or len(pixels)
    parts = [
        session.run(None, {session.get_inputs()[0].name: np.resize(pixels[at : at + size], (size, *pixels.shape[1:]))})[
            0
        ]
        for at in range(0, len(pixels), size)
    ]
    return np.concatenate(parts)[: len(pixels)].reshape(len(pixels), -1).astype(np.float64)


def normalised(kind: "type[np.generic]" = np.float32, *, layout: str = "nchw") -> NDArray[np.generic]:
    pixels = (IMAGES / 255 - MEAN) / STD
    return np.ascontiguousarray(pixels if layout == "nhwc" else pixels.transpose(0, 3, 1, 2)).astype(kind)


def served(root: Path, name: str = NAME) -> tuple[Manifest, Outputs]:
    """The model, and the answers that the server's backend computes with it."""
    found = repository.get(root, name)
    return found, backends.load(found, repository.read(root, found)).run(list(IMAGES))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return result


def ranked(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.sort(-probabilities, axis=1)


# Logits out.


def half(path: Path) -> Path:
    return script(path, Small().half(), example=torch.zeros(1, 3, SIDE, SIDE).half())


def int8(path: Path, network: nn.Module, **options: bool) -> Path:
    return onnx_files.quantized(path, script(path.with_name("single.onnx"), network), **options)


def external(path: Path) -> Path:
    model = onnx.load(script(path, Small()))
    onnx.save(model, path, save_as_external_data=True, location="theirs.data", size_threshold=0)
    assert path.with_name("theirs.data").exists()
    return path


def pooled(path: Path) -> Path:
    """The last convolution's mean, [N, classes, 1, 1]."""
    return script(path, nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1)))


def later(path: Path) -> Path:
    return changed(path, opset_of(22), opset=20)


FREE: dict[str, tuple[Make, int]] = {
    "today's export": (lambda path: export(path, Small()), 20),
    "a later opset": (later, 22),
    "TorchScript, opset 7": (lambda path: script(path, Small(), opset=7), 20),
    "TorchScript, opset 20": (lambda path: script(path, Small(), opset=20), 20),
    "the zoo's": (onnx_files.zoo, 20),
    "parameters in a file beside it": (external, 20),
    "scores of shape [N, C, 1, 1]": (pooled, 20),
    "features beside the scores": (
        lambda path: script(path, WithFeatures(flat=False), outputs=("logits", "features")),
        20,
    ),
}


@pytest.mark.parametrize("kind", FREE)
def test_logits_come_through(kind: str, tmp_path: Path) -> None:
    make, opset = FREE[kind]
    path = make(tmp_path / "theirs.onnx")
    assert run(path, tmp_path) == 0
    found, outputs = served(tmp_path)
    assert found.opset == opset
    logits = scores(path, normalised())
    assert outputs.logits == pytest.approx(logits, rel=1e-4, abs=1e-4)
    assert outputs.indices[:, 0].tolist() == logits.argmax(1).tolist()
    assert outputs.probabilities == pytest.approx(ranked(softmax(logits)), abs=1e-5)


def test_manifest_says_where_it_came_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path / "theirs.onnx", Small())
    assert run(path, tmp_path) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        f"theirs.onnx: input float32[axis_0, 3, {SIDE}, {SIDE}] to output float32[batch_size, {CLASSES}], opset 17"
        in printed
    )
    assert "assumed, since an ONNX file does not say it" in printed
    assert "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225" in printed
    assert "its classes are numbered" in printed
    found, _ = served(tmp_path)
    assert (found.architecture, found.backend, found.precision, found.opset) == ("imported", "onnx", "fp32", 20)
    assert (found.weights.source, found.weights.random) == ("theirs.onnx", False)
    assert found.weights.sha256 == sha256_of(path)
    # TorchScript folds batch norm: two convolutions have biases instead.
    layers = Small()
    weights = sum(value.numel() for value in layers.parameters())
    assert found.parameters == weights - 2 * 8
    assert found.preprocessing.crop == (SIDE, SIDE)
    assert [label.label for label in found.labels] == [f"class {index}" for index in range(CLASSES)]
    parity = found.parity
    assert parity is not None
    assert parity.batch_sizes == (1, 3, 8)
    assert (parity.images, parity.real_images) == (24, 3)
    assert parity.max_logit_error < 1e-5


def test_same_again_is_recognised_and_other_preprocessing_is_another_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script(tmp_path / "theirs.onnx", Small())
    assert run(path, tmp_path) == 0
    before = everything(tmp_path)
    capsys.readouterr()
    assert run(path, tmp_path) == 0
    assert "theirs is already exported as version 1" in capsys.readouterr().out
    assert everything(tmp_path) == before
    assert run(path, tmp_path, "--mean", "0.5", "--std", "0.5") == 0
    assert served(tmp_path)[0].version == 2


# A frozen batch.


def frozen_inside(path: Path) -> Path:
    """Declares its batch free, but contains its size as a constant."""
    script(path, Small(), batch=1)
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def first_of_one(path: Path) -> Path:
    """Takes the first image of a batch of one, as some converters do, and keeps the batch dimension."""
    script(path, Small(), batch=1)
    model = onnx.load(path)
    first = onnx.helper.make_node("Gather", ["input", "zero"], ["gathered"], axis=0)
    flat = onnx.helper.make_node("Flatten", ["output"], ["flat"], axis=0)
    for node in model.graph.node:
        node.input[:] = ["gathered" if name == "input" else name for name in node.input]
    model.graph.node.insert(0, first)
    model.graph.node.append(flat)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    model.graph.output[0].name = "flat"
    onnx.save(model, path)
    return path


FROZEN: dict[str, tuple[Make, int]] = {
    "today's export": (lambda path: export(path, Small(), batch=1), 1),
    "TorchScript, opset 11": (lambda path: script(path, Small(), opset=11, batch=1), 1),
    "a batch of four": (lambda path: script(path, Small(), batch=4), 4),
    "inside alone": (frozen_inside, 1),
    "the first image": (first_of_one, 1),
    "a class token": (lambda path: script(path, Tokens(), batch=1), 1),
    "a class token for two": (lambda path: script(path, Tokens(), batch=2), 2),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_batch_is_freed(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, size = FROZEN[kind]
    path = make(tmp_path / "theirs.onnx")
    assert run(path, tmp_path) == 0, capsys.readouterr().err
    assert f"its batch size is fixed at {size}, and is made free" in capsys.readouterr().out
    _, outputs = served(tmp_path)
    assert outputs.logits == pytest.approx(scores(path, normalised(), frozen=size), rel=1e-4, abs=1e-4)


def test_batch_that_cannot_be_freed_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Squeezed(Small):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.last(self.features(pixels).squeeze())[None]
            return logits

    path = script(tmp_path / "theirs.onnx", Squeezed(), batch=1)
    error = refused(path, tmp_path, capfd)
    assert "was exported for batches of 1" in error
    assert "export it once more with a free batch" in error


# Other inputs.


def test_optimum_s_file_has_a_size_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = (0, 1, 2, 3)
    path = script(tmp_path / "model.onnx", Small(), inputs=["pixel_values"], outputs=["logits"], free=every)
    assert "choose one with --crop" in refused(path, tmp_path, capsys)
    assert run(path, tmp_path, "--crop", str(SIDE)) == 0
    found, outputs = served(tmp_path)
    assert found.preprocessing.crop == (SIDE, SIDE)
    assert outputs.logits == pytest.approx(scores(path, normalised()), rel=1e-4, abs=1e-4)


def test_keras_file_is_nhwc_with_a_softmax_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = onnx_files.keras(tmp_path / "keras.onnx")
    assert run(path, tmp_path) == 0
    assert "the logits before its softmax" in capsys.readouterr().out
    found, outputs = served(tmp_path)
    probabilities = scores(path, normalised(layout="nhwc"))
    assert outputs.probabilities == pytest.approx(ranked(probabilities), abs=1e-5)
    assert not np.allclose(outputs.logits.sum(1), 1)
    # No transpose undoes another, and the last layer is a single operator that quantisation knows.
    complete = onnx.load_from_string(repository.read(tmp_path, found))
    network = Extractor(complete).extract_model([complete.graph.input[0].name], [LOGITS_NAME])
    operators = [node.op_type for node in network.graph.node]
    assert operators.count("Transpose") == 1
    assert "Gemm" in operators


def test_pixels_as_bytes_are_not_normalised_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)
    path = script(tmp_path / "theirs.onnx", Pixels(), example=example)
    assert "normalises them itself: leave out --mean and --std" in refused(path, tmp_path, capsys, "--mean", "0.5")
    assert run(path, tmp_path) == 0
    assert "--mean" not in capsys.readouterr().out
    found, outputs = served(tmp_path)
    assert (found.preprocessing.mean, found.preprocessing.std) == ((0, 0, 0), (1 / 255,) * 3)
    assert outputs.logits == pytest.approx(scores(path, IMAGES), rel=1e-4, abs=1e-4)


def test_grey_images_have_one_channel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path / "theirs.onnx", Small(channels=1), example=torch.zeros(1, 1, SIDE, SIDE))
    assert "takes images with 1 channel" in refused(path, tmp_path, capsys, "--channels", "bgr")
    assert run(path, tmp_path, "--mean", "0.5", "--std", "0.25") == 0
    assert served(tmp_path)[0].preprocessing.channels == "grey"


def test_means_of_caffe_are_taken_off_bgr(tmp_path: Path) -> None:
    path = script(tmp_path / "theirs.onnx", Small())
    means = ("--mean", "104/255", "117/255", "123/255", "--std", "1/255")
    assert run(path, tmp_path, "--channels", "bgr", *means) == 0
    pixels = IMAGES[..., ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
    expected = scores(path, np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    assert served(tmp_path)[1].logits == pytest.approx(expected, rel=1e-4, abs=1e-3)


# Other precisions.


@pytest.mark.parametrize("inputs", ["half", "single"])
def test_half_precision_stays_it(inputs: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    if inputs == "half":
        half(path)
    else:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        script(path, Small())
        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
    assert run(path, tmp_path) == 0
    found, outputs = served(tmp_path)
    assert found.precision == "fp16"
    expected = scores(path, normalised(np.float16 if inputs == "half" else np.float32))
    assert outputs.logits == pytest.approx(expected, rel=1e-2, abs=1e-2)


def test_integers_stay_them(tmp_path: Path) -> None:
    path = int8(tmp_path / "theirs.onnx", nn.Sequential(Small(), nn.Softmax(1)))
    assert run(path, tmp_path) == 0
    found, outputs = served(tmp_path)
    assert (found.precision, found.needs_vnni) == ("int8", True)
    graph = onnx.load_from_string(repository.read(tmp_path, found)).graph
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in graph.initializer)
    # The file rounds its probabilities to 256 levels; those served are made of the logits before.
    assert outputs.probabilities == pytest.approx(ranked(scores(path, normalised())), abs=1 / 256)


def test_integers_of_seven_bits_need_no_vnni(tmp_path: Path) -> None:
    path = int8(tmp_path / "theirs.onnx", Small())
    assert onnx_file.read(path, None, None, None).needs_vnni
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) // 2, tensor.name))
    onnx.save(model, path)
    assert not onnx_file.read(path, None, None, None).needs_vnni


# Other scores.


def test_probabilities_without_logits_have_their_logarithm_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script(tmp_path / "theirs.onnx", Averaged())
    assert run(path, tmp_path) == 0
    assert "taken from it: its probabilities" in capsys.readouterr().out
    found, outputs = served(tmp_path)
    assert found.activation == "softmax"
    assert outputs.probabilities == pytest.approx(ranked(scores(path, normalised())), abs=1e-5)


def test_softmax_within_a_function_is_left_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = onnx_files.with_function(tmp_path / "theirs.onnx")
    assert run(path, tmp_path) == 0, capsys.readouterr().err
    assert "taken from it: its probabilities" in capsys.readouterr().out
    assert served(tmp_path)[1].probabilities == pytest.approx(ranked(scores(path, normalised())), abs=1e-5)


def test_softmax_on_maps_is_found_before_they_are_flattened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = (nn.Conv2d(3, CLASSES, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Softmax(1), nn.Flatten())
    path = script(tmp_path / "theirs.onnx", nn.Sequential(*layers), opset=12)  # before 13, softmax flattened its input
    assert run(path, tmp_path) == 0
    assert "the logits before its softmax" in capsys.readouterr().out
    assert served(tmp_path)[1].probabilities == pytest.approx(ranked(scores(path, normalised())), abs=1e-5)


@pytest.mark.parametrize("classes", [1, CLASSES])
def test_sigmoid_is_taken_off_and_stays_the_activation(classes: int, tmp_path: Path) -> None:
    path = script(tmp_path / "theirs.onnx", nn.Sequential(Small(classes), nn.Sigmoid()))
    assert run(path, tmp_path) == 0
    found, outputs = served(tmp_path)
    assert (found.activation, found.num_classes) == ("sigmoid", classes)
    assert outputs.probabilities == pytest.approx(ranked(scores(path, normalised())), abs=1e-5)


def test_one_logit_is_a_probability_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path / "theirs.onnx", Small(1))
    assert "whose softmax is always 1" in refused(path, tmp_path, capsys, "--activation", "softmax")
    assert run(path, tmp_path) == 0
    found, outputs = served(tmp_path)
    assert found.activation == "sigmoid"
    assert outputs.probabilities == pytest.approx(1 / (1 + np.exp(-scores(path, normalised()))), abs=1e-5)


class Flat(Small):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels).squeeze(1)


@pytest.mark.parametrize("batch", [None, 1])
def test_one_logit_needs_no_axis_of_classes(batch: int | None, tmp_path: Path) -> None:
    path = script(tmp_path / "theirs.onnx", Flat(1), batch=batch)
    assert run(path, tmp_path) == 0
    found, outputs = served(tmp_path)
    assert (found.activation, found.num_classes) == ("sigmoid", 1)
    expected = scores(script(tmp_path / "two.onnx", Small(1)), normalised())
    assert outputs.logits == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_unused_inputs_and_sizes_of_minus_one_do_not_matter(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for at, size in ((0, -1), (2, 0), (3, -1)):
            model.graph.input[0].type.tensor_type.shape.dim[at].dim_value = size
        flag = onnx.helper.make_tensor_value_info("training", onnx.TensorProto.BOOL, [])
        model.graph.input.append(flag)

    path = changed(tmp_path / "theirs.onnx", change)
    assert run(path, tmp_path, "--crop", str(SIDE), "--resize", str(SIDE)) == 0
    plain = script(tmp_path / "plain.onnx", Small())
    assert served(tmp_path)[1].logits == pytest.approx(scores(plain, normalised()), rel=1e-4, abs=1e-4)


def test_scores_that_may_be_either_are_to_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path / "theirs.onnx", nn.Sequential(Small(), nn.Hardsigmoid()))
    assert "say whether they are --scores" in refused(path, tmp_path, capsys)
    assert run(path, tmp_path, "--scores", "probabilities") == 0
    found, outputs = served(tmp_path)
    assert found.activation == "sigmoid"
    assert outputs.probabilities == pytest.approx(ranked(scores(path, normalised())), abs=1e-5)


def test_one_of_several_outputs_is_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path / "theirs.onnx", WithFeatures(flat=True), outputs=("logits", "features"))
    assert "has 2 outputs, logits float32[batch_size, 5], features float32[batch_size, 16]" in refused(
        path, tmp_path, capsys
    )
    assert run(path, tmp_path, "--output", "logits") == 0
    assert served(tmp_path)[1].logits == pytest.approx(scores(path, normalised()), rel=1e-4, abs=1e-4)


def test_a_value_inside_can_be_the_input(tmp_path: Path) -> None:
    """For a file that preprocesses its images itself, in another way than the server."""
    path = script(tmp_path / "theirs.onnx", Pixels(), example=torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8))
    graph = onnx.load(path).graph
    first = next(node for node in graph.node if node.op_type == "Conv")
    assert run(path, tmp_path, "--input", first.input[0], "--mean", "0.5", "--std", "0.5") == 0
    assert served(tmp_path)[1].logits == pytest.approx(scores(path, IMAGES), rel=1e-3, abs=1e-3)


# What is refused.


def refused(path: Path, root: Path, captured: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that says why a file is refused."""
    before = everything(root)
    captured.readouterr()
    assert run(path, root, *arguments) == 1
    error = captured.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert everything(root) == before
    return error


def two_inputs(path: Path) -> Path:
    class Masked(Small):
        def forward(self, pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(pixels * mask)

    return script(path, Masked(), batch=1, inputs=["pixels", "mask"])


def changed(path: Path, change: Callable[[onnx.ModelProto], object], opset: int = 17) -> Path:
    script(path, Small(), opset=opset)
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def own_operator(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "Swishier", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))


def opset_of(version: int) -> Callable[[onnx.ModelProto], None]:
    def say_so(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return say_so


def poison(model: onnx.ModelProto) -> None:
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "last.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(CLASSES, np.nan, np.float32), bias.name))


def cut_off(path: Path) -> Path:
    script(path, Small())
    path.write_bytes(path.read_bytes()[:-100])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pointer(path: Path) -> Path:
    return written(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 102442450\n")


def without_a_graph(path: Path) -> Path:
    path.write_bytes(onnx.ModelProto(ir_version=8, producer_name="x").SerializeToString())
    return path


def without_its_data(path: Path) -> Path:
    external(path).with_name("theirs.data").unlink()
    return path


def in_training_mode(path: Path) -> Path:
    mode = torch.onnx.TrainingMode.TRAINING
    return script(path, Small().train(), training=mode, do_constant_folding=False)


REFUSED: dict[str, tuple[Make, str]] = {
    "missing": (lambda path: path, "No such file or directory"),
    "cut off": (cut_off, "is cut off or damaged"),
    "a pointer": (pointer, "is a Git LFS pointer"),
    "some text": (lambda path: written(path, b"# Mine\n"), "is no ONNX file: export/to_onnx.py takes checkpoints"),
    "no graph": (without_a_graph, "has no graph"),
    "its data are missing": (without_its_data, "put it there under the name it had"),
    "maps of features": (lambda path: script(path, Small().first), "not one score for each class"),
    "two inputs": (two_inputs, f"needs 2 inputs, pixels float32[1, 3, {SIDE}, {SIDE}], mask float32"),
    "a detector": (
        onnx_files.detector,
        "has 3 outputs, boxes float32[n, 100, 4], scores float32[n, 100], labels int64",
    ),
    "an operator of its own": (
        lambda path: changed(path, own_operator),
        "has custom operators, com.example::Swishier",
    ),
    "an opset of the future": (
        lambda path: changed(path, opset_of(99)),
        "has opset 99, newer than ONNX Runtime",
    ),
    "an IR version of the future": (
        lambda path: changed(path, lambda model: setattr(model, "ir_version", 99)),
        "has a newer IR version than ONNX Runtime",
    ),
    "softmax of one class": (
        lambda path: script(path, nn.Sequential(Small(1), nn.Softmax(1))),
        "name the value before it with --output",
    ),
    "not a number": (lambda path: changed(path, poison), "answers NaN or infinity"),
    "in training mode": (in_training_mode, "it was exported in training mode"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_classifier_gets_one_sentence(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, reason = REFUSED[kind]
    assert reason in refused(make(tmp_path / "theirs.onnx"), tmp_path, capfd)


def test_damage_anywhere_gets_one_sentence_or_does_not_matter(tmp_path: Path) -> None:
    whole, path = onnx_files.keras(tmp_path / "keras.onnx").read_bytes(), tmp_path / "damaged.onnx"
    random = np.random.default_rng(0)
    refusals: list[str] = []
    for _ in range(40):
        content = bytearray(whole)
        content[random.integers(len(content) if random.random() < 0.2 else 1500)] = random.integers(256)
        path.write_bytes(content)
        try:
            Original(onnx_file.read(path, None, None, None))
        except ExpectedError as error:
            refusals.append(str(error))
    assert 10 < len(refusals) < 40
    assert not any("\n" in refusal for refusal in refusals)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--crop", "32"], f"takes images of {SIDE}x{SIDE}, not of 32x32: leave out --crop"),
        (["--channels", "grey"], "takes images with 3 channels"),
        (["--activation", "sigmoid"], "ends in a softmax: --activation sigmoid is not what it was made for"),
        (["--output", "nothing"], "has no value nothing; its outputs are output float32"),
        (["--input", "nothing"], "output cannot be computed from nothing alone"),
        (["--labels", "{labels}"], f"has {CLASSES} classes, {{labels}} has 7 labels"),
    ],
)
def test_what_does_not_go_with_the_file_is_refused(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    labels_of_seven: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = script(tmp_path / "theirs.onnx", nn.Sequential(Small(), nn.Softmax(1)))
    given = [one.format(labels=labels_of_seven) for one in arguments]
    assert reason.format(labels=labels_of_seven) in refused(path, tmp_path, capsys, *given)


def test_file_that_was_tampered_with_while_it_was_completed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gate compares with the original file."""
    original = splice.complete

    def shift(*arguments: object) -> bytes:
        model = onnx.load_from_string(original(*arguments))  # type: ignore[arg-type]
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "network.last.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
        content: bytes = model.SerializeToString()
        return content

    monkeypatch.setattr(splice, "complete", shift)
    path = script(tmp_path / "theirs.onnx", Small())
    assert "logits differ from theirs.onnx's by" in refused(path, tmp_path, capsys)


# Everything else that works on models works on imported ones.


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with models from Keras, from a transformer with a frozen batch, and in lower precisions."""
    root = tmp_path_factory.mktemp("imported")
    assert run(onnx_files.keras(root / "keras.onnx"), root) == 0
    assert run(script(root / "tokens.onnx", Tokens(), batch=1), root, name="tokens") == 0
    assert run(half(root / "half.onnx"), root, name="half") == 0
    for_gpus = int8(root / "int8.onnx", Small(), ActivationSymmetric=True, QuantizeBias=False)
    assert run(for_gpus, root, name="int8") == 0
    return root


def test_verify_reports_on_it(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([NAME, "--repository", str(models), "--seconds", "0", "--backend", "onnx,openvino"]) == 0
    assert "compared with the first file" in " ".join(capsys.readouterr().out.split())


def test_ensemble_has_it_as_a_member(models: Path) -> None:
    assert ensemble.main(["both", NAME, "tokens", "--repository", str(models)]) == 0


@pytest.mark.parametrize("name", [NAME, "tokens"])
def test_quantize_lowers_it(name: str, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [name, "--repository", str(models), "--seconds", "0", "--min-agreement", "0"]
    assert quantize.main([*common, "--precision", "fp16"]) == 0, capsys.readouterr().err
    assert quantize.main([*common, "--calibration", str(PHOTOS), "--method", "minmax"]) == 0, capsys.readouterr().err
    assert repository.get(models, f"{name}-int8").precision == "int8"


@pytest.mark.parametrize(
    ("name", "precision"), [(NAME, "fp32"), (NAME, "fp16"), ("tokens", "fp16"), ("half", "fp16"), ("int8", "int8")]
)
def test_tensorrt_builds_an_engine_of_it(
    name: str, precision: str, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [name, "--repository", str(models), "--target", "sm89", "--precision", precision, "--max-batch", "2"]
    assert to_trt.main(arguments) == 0, capsys.readouterr().err
    assert repository.get(models, f"{name}-rtx-{precision}-sm89").backend == "tensorrt"


def test_what_came_in_lower_precision_is_lowered_no_more(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize.main(["half", "--repository", str(models), "--precision", "fp16"]) == 1
    assert "half is a file of onnx in fp16, not of ONNX in FP32" in capsys.readouterr().err
