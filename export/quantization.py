"""INT8: the network of a complete graph with quantised weights and activations, by ONNX Runtime's own tools.

The file stays an ordinary ONNX graph: QuantizeLinear and DequantizeLinear (QDQ) around each operator say what is
rounded how, and every runtime fuses them into its own 8-bit kernels.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from export import backends, bias_correction, comparison, console, samples
from export.precision import Method
from models.errors import ExpectedError
from models.manifest import INPUT_NAME, LOGITS_NAME, Manifest, QuantizationTarget

_BATCH = 8
_METHODS: dict[Method, tuple[CalibrationMethod, dict[str, Any]]] = {
    # Histograms are made a batch at a time (this option's name is an accident): all activations would fill the memory.
    "percentile": (CalibrationMethod.Percentile, {"CalibPercentile": 99.99, "CalibStridedMinMax": 1}),
    "moving-average": (CalibrationMethod.MinMax, {"CalibMovingAverage": True}),
    "minmax": (CalibrationMethod.MinMax, {}),
    "entropy": (CalibrationMethod.Entropy, {"CalibStridedMinMax": 1}),
}
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html says why: x86 multiplies unsigned
# activations with signed weights; without VNNI two products are added in 16 bits, which overflow unless the weights
# have 7 bits. GPUs take symmetric signed values alone; TensorRT wants the bias in floating point.
_TARGETS: dict[QuantizationTarget, tuple[dict[str, Any], dict[str, Any]]] = {
    "x86-vnni": ({"activation_type": QuantType.QUInt8}, {}),
    "x86": ({"activation_type": QuantType.QUInt8, "reduce_range": True}, {}),
    "gpu": ({"activation_type": QuantType.QInt8}, {"ActivationSymmetric": True, "QuantizeBias": False}),
}
_LARGEST_WEIGHT: dict[QuantizationTarget, int] = {"x86-vnni": 127, "x86": 64, "gpu": 127}


class QuantizationError(ExpectedError):
    """A graph cannot be quantised."""


def calibrate(
    source: Manifest, single: bytes, paths: Sequence[Path], target: QuantizationTarget, methods: Sequence[Method]
) -> tuple[Method, bytes]:
    """Quantise by each method and return the one that stays closest to FP32 on the images it was calibrated on.

    The images it is judged by are not looked at: the best of several noisy figures would be better than it is.

    Raises:
        ExpectedError: an image cannot be read, or the file is no complete graph.
    """
    pixels = samples.pixels(paths, source.preprocessing)[:, 0]
    files: dict[Method, bytes] = {}
    for method in methods:
        with console.step(f"calibrate on {len(pixels)} images: {method}"):
            files[method] = quantize(single, pixels, target, method)
    if len(files) == 1:
        return next(iter(files.items()))
    with console.step("choose the method"):
        loaded = [backends.load(source, content) for content in (single, *files.values())]
        reference, *candidates = comparison.answers(loaded, paths, source)
    divergences = (answers.divergence(reference) for answers in candidates)
    _, best = min(zip(divergences, files, strict=True))
    console.say(f"closest to FP32 on the images of the calibration: {best}")
    return best, files[best]


def quantize(model: bytes, images: NDArray[np.uint8], target: QuantizationTarget, method: Method) -> bytes:
    """Quantise the network between pixels and logits; weights have a scale for each output channel.

    Args:
        model: a complete graph in FP32.
        images: what activations are calibrated on, uint8[N, H, W, 3].
        target: what will run it.
        method: how an activation's range is found.

    Returns:
        The ONNX file. Normalisation, softmax and ranking are as they were.

    Raises:
        QuantizationError: the file is no complete graph.
    """
    calibrate, calibration = _METHODS[method]
    arguments, options = _TARGETS[target]
    with TemporaryDirectory() as folder, _silenced():
        single, prepared, quantized = (Path(folder, name) for name in ("single.onnx", "prepared.onnx", "int8.onnx"))
        single.write_bytes(model)
        quant_pre_process(single, prepared, skip_symbolic_shape=True)
        proto = onnx.load(prepared)
        excluded = _outside_network(proto.graph)
        bias_correction.correct(proto, images, _LARGEST_WEIGHT[target], set(excluded))
        onnx.save(proto, prepared)
        quantize_static(
            prepared,
            quantized,
            _Images(images),
            per_channel=True,
            weight_type=QuantType.QInt8,
            calibrate_method=calibrate,
            nodes_to_exclude=excluded,
            # Ranking needs the logits as they are: of 256 levels two classes may share the largest.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]} | calibration | options,
            **arguments,
        )
        proto = onnx.load(quantized)
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


class _Images(CalibrationDataReader):  # type: ignore[misc] # ONNX Runtime has no types
    """Feeds batches; the last may be smaller."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        self._next = iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Feed these batches next."""
        self._next = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the inputs of the next run; None after the last."""
        batch = next(self._next, None)
        return None if batch is None else {INPUT_NAME: batch}


def _outside_network(graph: onnx.GraphProto) -> list[str]:
    """Name the nodes before the first convolution and after the logits."""
    first = next((at for at, node in enumerate(graph.node) if node.op_type == "Conv"), None)
    last = next((at for at, node in enumerate(graph.node) if LOGITS_NAME in node.output), None)
    if first is None or last is None:
        raise QuantizationError("the ONNX file has no network between pixels and logits to quantise")
    return [node.name for at, node in enumerate(graph.node) if not first <= at <= last]


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep from our users what the tools print and log for their developers."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
