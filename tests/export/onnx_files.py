"""ONNX files like those that people have, each with a small network with random parameters."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from torch import Tensor, nn

from export.graph import silenced

SIDE, CLASSES = 16, 5


class Small(nn.Module):
    """Three convolutions, one of them with a shortcut around it, and batch norm whose statistics are not trivial."""

    def __init__(self, classes: int = CLASSES, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.third = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1))
        self.last = nn.Linear(16, classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.get_buffer("running_mean"), -0.5, 0.5)
                nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=2)  # so that classes differ
        self.eval()

    def features(self, pixels: Tensor) -> Tensor:
        pixels = self.first(pixels)
        features: Tensor = self.third(pixels + self.second(pixels))
        return features

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.features(pixels)
        scores: Tensor = self.last(features.view(features.shape[0], -1))  # a frozen batch's size becomes a constant
        return scores


class Tokens(nn.Module):
    """A vision transformer: patches and a class token, which attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 24)
        self.last = nn.Linear(8, CLASSES)
        nn.init.normal_(self.last.weight, std=2)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([self.token.expand(len(pixels), -1, -1), patches], 1))
        count, length, _ = tokens.shape
        queries, keys, values = self.mix(tokens).reshape(count, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = (queries @ keys.transpose(-2, -1)).softmax(-1) @ values
        scores: Tensor = self.last(mixed.transpose(1, 2).reshape(count, length, 8)[:, 0])
        return scores


class Averaged(nn.Module):
    """The mean of two networks' probabilities, which does not end in a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Small(), Small()
        nn.init.normal_(self.two.last.weight)

    def forward(self, pixels: Tensor) -> Tensor:
        probabilities: Tensor = (self.one(pixels).softmax(1) + self.two(pixels).softmax(1)) / 2
        return probabilities


class Pixels(nn.Module):
    """Normalises its input itself: uint8[N, H, W, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Small()

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return scores


class WithFeatures(nn.Module):
    """Also outputs the input of its last layer."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.network = Small()
        self.flat = flat

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(pixels)
        return self.network(pixels), features.flatten(1) if self.flat else features


def script(
    path: Path,
    network: nn.Module,
    *,
    batch: int | None = None,
    opset: int = 17,
    inputs: Sequence[str] = ("input",),
    outputs: Sequence[str] = ("output",),
    free: Sequence[int] = (0,),
    example: Tensor | None = None,
    **options: Any,
) -> Path:
    """Export through TorchScript, as PyTorch did for years; `batch` None: the dimensions `free` are free."""
    if example is None:
        example = torch.zeros(batch or 1, 3, SIDE, SIDE)
    names = {name: {0: "batch_size"} for name in outputs} | {inputs[0]: {axis: f"axis_{axis}" for axis in free}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,) * len(inputs),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=names if batch is None else None,
            **options,
        )
    return path


def export(path: Path, network: nn.Module, *, batch: int | None = None, **options: Any) -> Path:
    """Export as PyTorch does today; `batch` None: it is free."""
    free: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if batch is None else {}
    with silenced():
        torch.onnx.export(
            network, (torch.zeros(batch or 2, 3, SIDE, SIDE),), path, dynamo=True, verbose=False, **free, **options
        )
    return path


def zoo(path: Path) -> Path:
    """Like `resnet50-v1-12` of the ONNX model zoo: parameters are among the inputs, a free batch is called N."""
    outputs = ("resnetv17_dense0_fwd",)
    script(path, Small(), opset=12, inputs=("data",), outputs=outputs, keep_initializers_as_inputs=True)
    model = onnx.load(path)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    model.ir_version = 3
    assert len(model.graph.input) > 1
    onnx.save(model, path)
    return path


def keras(path: Path) -> Path:
    """A Keras network as tf2onnx writes it: NHWC with a transpose first, a mean and a product last, softmax inside."""
    random = np.random.default_rng(0)
    text = f"""
        <ir_version: 8, opset_import: ["" : 15], producer_name: "tf2onnx", producer_version: "1.16.1">
        tf2onnx (float[unk__6, {SIDE}, {SIDE}, 3] input_1) => (float[unk__7, {CLASSES}] predictions) {{
            images = Transpose <perm = [0, 3, 1, 2]> (input_1)
            padded = Pad (images, pads)
            first = Conv <strides = [2, 2], kernel_shape = [3, 3]> (padded, kernel_1, bias_1)
            active = Relu (first)
            second = Conv <auto_pad = "SAME_UPPER", kernel_shape = [3, 3]> (active, kernel_2, bias_2)
            active_2 = Clip (second, zero, six)
            pooled = ReduceMean <axes = [2, 3], keepdims = 0> (active_2)
            shaped = Reshape (pooled, const_fold_opt__42)
            product = MatMul (shaped, kernel_3)
            added = Add (product, bias_3)
            predictions = Softmax <axis = 1> (added)
        }}"""
    model = parser.parse_model(text)
    parameters: dict[str, NDArray[np.generic]] = {
        "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "const_fold_opt__42": np.array([-1, 8], np.int64),
        **{f"kernel_{at}": random.normal(size=(8, size, 3, 3)).astype("f4") / 3 for at, size in ((1, 3), (2, 8))},
        **{f"bias_{at}": random.normal(size=8).astype("f4") for at in (1, 2)},
        "kernel_3": random.normal(size=(8, CLASSES)).astype("f4"),
        "bias_3": random.normal(size=CLASSES).astype("f4"),
    }
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in parameters.items())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def with_function(path: Path) -> Path:
    """Layers and softmax are in a function, as some exporters keep modules."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17, "theirs" : 1]>
        network (float[n, 3, {SIDE}, {SIDE}] pixels) => (float[n, 3] probabilities) {{
            probabilities = theirs.head (pixels)
        }}
        <domain: "theirs", opset_import: ["" : 17]>
        head (pixels) => (probabilities) {{
            pooled = GlobalAveragePool (pixels)
            logits = Flatten (pooled)
            probabilities = Softmax (logits)
        }}""")
    onnx.save(model, path)
    return path


def detector(path: Path) -> Path:
    """A detector: boxes, and for each of them scores and a class."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 15]>
        detector (float[n, 3, {SIDE}, {SIDE}] images)
            => (float[n, 100, 4] boxes, float[n, 100] scores, int64[n, 100] labels)
        <int64[1] axes = {{1}}, int64[2] flat = {{0, -1}}, int64[3] four = {{1, 1, 4}}> {{
            rows = Reshape (images, flat)
            best, all = TopK <axis = 1> (rows, hundred)
            scores = Identity (best)
            labels = Identity (all)
            tall = Unsqueeze (best, two)
            boxes = Tile (tall, four)
        }}""")
    model.graph.initializer.append(numpy_helper.from_array(np.array([100]), "hundred"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "two"))
    onnx.save(model, path)
    return path


def quantized(path: Path, source: Path, **options: bool) -> Path:
    """As ONNX Runtime's tools quantise a file: QuantizeLinear and DequantizeLinear everywhere."""

    class Random(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime has no types
        def __init__(self) -> None:
            pixels = np.random.default_rng(0).normal(size=(4, 1, 3, SIDE, SIDE)).astype("f4")
            self.batches = iter([{"input": one} for one in pixels])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.batches, None)

    quantize_static(source, path, Random(), extra_options=options)
    return path
