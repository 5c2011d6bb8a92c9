"""INT8: quantises weights and activations of a complete graph's network with ONNX Runtime's own tools.

The file stays an ordinary ONNX graph: QuantizeLinear and DequantizeLinear (QDQ) around each operator say how its values
are rounded, and every runtime fuses them into its own 8-bit kernels.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from export import activations, backends, bias_correction, comparison, console, samples
from export.precision import Method, Wanted
from models.errors import ExpectedError
from models.manifest import LOGITS_NAME, Manifest, QuantizationTarget, Rounding

# From https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html: x86 multiplies unsigned
# activations by signed weights; without VNNI it adds two products in 16 bits, which overflow unless the weights have 7
# bits. GPUs take symmetric signed values only; TensorRT needs the bias in floating point.
_TARGETS: dict[QuantizationTarget, tuple[dict[str, Any], dict[str, Any]]] = {
    "x86-vnni": ({"activation_type": QuantType.QUInt8}, {}),
    "x86": ({"activation_type": QuantType.QUInt8, "reduce_range": True}, {}),
    "gpu": ({"activation_type": QuantType.QInt8}, {"ActivationSymmetric": True, "QuantizeBias": False}),
}
_LARGEST_WEIGHT: dict[QuantizationTarget, int] = {"x86-vnni": 127, "x86": 64, "gpu": 127}
_LAYERS = ["Conv", "Gemm", "MatMul"]
_JUDGED = 128
"""Most images by which the recipe is chosen."""
_ERRORS = 2
"""Standard errors by which a recipe must be closer than the usual one. A single image can account for one."""
_NOTHING = 1e-9
"""Divergence that rounding logits to float32 alone can cause."""

_Key = TypeVar("_Key")


class QuantizationError(ExpectedError):
    """A graph cannot be quantised."""


class Quantized(NamedTuple):
    """An INT8 file, and how it was made."""

    content: bytes
    method: Method
    rounding: Rounding


def calibrate(source: Manifest, single: bytes, paths: Sequence[Path], wanted: Wanted) -> Quantized:
    """Quantise a model on images, by the recipe that stays closest to FP32 on them.

    The evaluation images take no part in the choice: the best of several noisy figures would flatter the file.

    Raises:
        ExpectedError: an image cannot be read, or the file is not a complete graph.
    """
    with console.step(f"calibrate on {len(paths)} images"):
        network = Calibrated(single, samples.pixels(paths, source.preprocessing)[:, 0])
    usual, *others = wanted.roundings
    files = {method: network.quantize(wanted.target, method, usual) for method in wanted.methods}
    with console.step("choose the recipe"):
        judges = paths[:: -(-len(paths) // _JUDGED)]
        method = _closest(source, single, files, judges, wanted)
        rounded = {usual: files[method]}
        rounded |= {other: network.quantize(wanted.target, method, other) for other in others}
        rounding = _closest(source, single, rounded, judges, wanted)
    console.say(f"ranges by {method}, activations rounded: {rounding}")
    return Quantized(rounded[rounding], method, rounding)


class Calibrated:
    """A network, with its activations as observed on real images."""

    def __init__(self, model: bytes, images: NDArray[np.uint8]) -> None:
        """Run the images through the network.

        Args:
            model: a complete graph in FP32.
            images: what activations are calibrated on, uint8[N, H, W, 3].

        Raises:
            QuantizationError: the file is not a complete graph.
        """
        with TemporaryDirectory() as folder, _silenced():
            single, prepared = (Path(folder, name) for name in ("single.onnx", "prepared.onnx"))
            single.write_bytes(model)
            quant_pre_process(single, prepared, skip_symbolic_shape=True)
            self._proto = onnx.load(prepared)
        self._outside = _outside_network(self._proto.graph)
        self._activations = activations.observe(self._proto, images)

    def quantize(self, target: QuantizationTarget, method: Method, rounding: Rounding = "all") -> bytes:
        """Quantise the network between pixels and logits; weights have a scale for each output channel.

        Args:
            target: the hardware that will run it.
            method: how an activation's range is found.
            rounding: which activations are rounded.

        Returns:
            The ONNX file, with normalisation, softmax and ranking unchanged.
        """
        arguments, options = _TARGETS[target]
        excluded = self._outside + ([] if rounding == "all" else _first_layer(self._proto.graph))
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        bias_correction.correct(proto, self._activations, _LARGEST_WEIGHT[target], set(excluded))
        with TemporaryDirectory() as folder, _silenced():
            prepared, ranges, quantized = (Path(folder, name) for name in ("prepared.onnx", "ranges", "int8.onnx"))
            onnx.save(proto, prepared)
            save_tensors_data(TensorsData(CalibrationMethod.MinMax, dict(self._activations.ranges(method))), ranges)
            quantize_static(
                prepared,
                quantized,
                calibration_cache_path=ranges,
                calibrate_method=CalibrationMethod.MinMax,
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                op_types_to_quantize=_LAYERS if rounding == "inputs" else None,
                # Ranking needs the logits unrounded: with 256 levels, two classes may share the largest.
                extra_options=options
                | {"OpTypesToExcludeOutputQuantization": _LAYERS if rounding == "inputs" else ["Gemm"]},
                **arguments,
            )
            proto = onnx.load(quantized)
        if rounding == "inputs":
            _round_inputs_alone(proto.graph)
        onnx.checker.check_model(proto, full_check=True)
        content: bytes = proto.SerializeToString(deterministic=True)
        return content


def _closest(
    source: Manifest, single: bytes, files: Mapping[_Key, bytes], paths: Sequence[Path], wanted: Wanted
) -> _Key:
    """Name the file that is closest to FP32 on these images."""
    if len(files) == 1:
        return next(iter(files))
    loaded = [backends.load(source, single)]
    loaded += [backends.load(source, content, wanted.backend) for content in files.values()]
    reference, *candidates = comparison.answers(loaded, paths, source)
    divergences = (answers.divergences(reference) for answers in candidates)
    return closest(dict(zip(files, divergences, strict=True)))


def closest(divergences: Mapping[_Key, NDArray[np.float64]]) -> _Key:
    """Name the candidate that is closest to FP32: the first, unless another is clearly closer.

    A candidate is clearly closer if its divergences are smaller by more than chance explains (mean logarithm of the
    ratios) and no larger on average. So no single image decides, and images on which the candidate fails still count.

    Args:
        divergences: of each candidate, float64[M], on the same images.
    """
    best, *others = divergences
    usual, gain = divergences[best], 0.0
    for name in others:
        closer = np.log(np.maximum(usual, _NOTHING) / np.maximum(divergences[name], _NOTHING))
        chance = _ERRORS * closer.std() / max(1, len(closer) - 1) ** 0.5
        if closer.mean() > max(gain, chance) and divergences[name].mean() <= usual.mean():
            best, gain = name, closer.mean()
    return best


def _outside_network(graph: onnx.GraphProto) -> list[str]:
    """Name the nodes before the first convolution and those that no logit depends on."""
    first = next((at for at, node in enumerate(graph.node) if node.op_type == "Conv"), None)
    needed, network = {LOGITS_NAME}, set[str]()
    for node in reversed(graph.node[first:]):
        if needed.intersection(node.output):
            needed.update(node.input)
            network.add(node.name)
    if first is None or not network:
        raise QuantizationError("the ONNX file has no network between pixels and logits to quantise")
    return [node.name for node in graph.node if node.name not in network]


def _first_layer(graph: onnx.GraphProto) -> list[str]:
    """Name the first convolution, and the nodes that bound its outputs."""
    first = next(node for node in graph.node if node.op_type == "Conv")
    bounds = [node for node in graph.node if node.op_type in ("Relu", "Clip") and node.input[0] == first.output[0]]
    return [node.name for node in (first, *bounds)]


def _round_inputs_alone(graph: onnx.GraphProto) -> None:
    """Give sums and pools their unrounded inputs again, which the tool rounded for layers that share them."""
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in (*_LAYERS, "QuantizeLinear", "DequantizeLinear"):
            continue
        for at, name in enumerate(node.input):
            rounded = made.get(name)
            if rounded and rounded.op_type == "DequantizeLinear" and rounded.input[0] in made:
                node.input[at] = made[rounded.input[0]].input[0]


@contextmanager
def _silenced() -> Iterator[None]:
    """Hide from our users what the tools print and log for their developers."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
