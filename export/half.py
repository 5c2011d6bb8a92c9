"""Half precision: the network of a complete graph in FP16; pixels come and probabilities leave as before.

TensorRT's networks are strongly typed: their precision is that of the ONNX file, and there is no other switch.
"""

from collections.abc import MutableSequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.parity import BATCH_SIZES, draw_batches
from export.reference import reference_images
from models.errors import ExpectedError
from models.manifest import INPUT_NAME, LOGITS_NAME, OUTPUT_NAMES, Manifest, Parity

MAX_LOGIT_ERROR = 2e-2
"""Allowed |logit - PyTorch's| as a share of the batch's largest |logit|.

FP16 rounds to 11 bits (5e-4) after every layer: measured 3e-4 to 5e-4 on untrained networks from ResNet-18 to
ResNet-152, 7e-4 to 2e-3 on the trained CIFAR ones, 6e-3 on the trained EfficientNet-Lite0. An activation beyond 65504
becomes infinite, which no tolerance lets pass.
"""
_PIXELS = "pixels_fp16"
_LOGITS = "logits_fp16"


class HalfError(ExpectedError):
    """A network does not keep its answers in half precision, or is not laid out as an exported one."""


def to_half(model: bytes) -> bytes:
    """Convert the network of a complete graph to FP16: all from its first convolution to its logits.

    Normalisation before it, softmax and ranking after it stay in FP32, and so do the graph's inputs and outputs.

    Raises:
        HalfError: it has no convolution or no logits.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    first = next((at for at, node in enumerate(graph.node) if node.op_type == "Conv"), None)
    last = next((at for at, node in enumerate(graph.node) if LOGITS_NAME in node.output), None)
    if first is None or last is None:
        raise HalfError("the ONNX file has no network between pixels and logits to convert to half precision")
    network = graph.node[first : last + 1]
    pixels = network[0].input[0]
    for node in network:
        _rename(node.input, {pixels: _PIXELS, LOGITS_NAME: _LOGITS})
        _rename(node.output, {LOGITS_NAME: _LOGITS})
    parameters = {name for node in network for name in node.input}
    for tensor in graph.initializer:
        if tensor.name in parameters and tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    nodes = [
        *graph.node[:first],
        helper.make_node("Cast", [pixels], [_PIXELS], "to_half", to=TensorProto.FLOAT16),
        *network,
        helper.make_node("Cast", [_LOGITS], [LOGITS_NAME], "from_half", to=TensorProto.FLOAT),
        *graph.node[last + 1 :],
    ]
    del graph.node[:]
    del graph.value_info[:]  # intermediate types, which are others now
    graph.node.extend(nodes)
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def check(half: bytes, single: bytes, source: Manifest, images: Path) -> Parity | None:
    """Compare a graph in half precision with the FP32 file that it came from, on random pixels and photos.

    The FP32 file was compared with PyTorch when it was exported. Both errors together bound how far the half file is
    from PyTorch; that is the error returned. None: the FP32 file was never compared.

    Raises:
        HalfError: they differ by more than the tolerance.
    """
    photos = reference_images(images, source.preprocessing)
    compared = list(draw_batches(photos, np.random.default_rng(0)))
    expected, logits = (_logits(model, compared) for model in (single, half))
    errors = [np.abs(one - truth).max() / np.abs(truth).max() for one, truth in zip(logits, expected, strict=True)]
    error = float(np.max(errors)) + (source.parity.max_logit_error if source.parity else 0)
    if not error <= MAX_LOGIT_ERROR:  # so that NaN fails
        raise HalfError(
            f"in half precision the logits differ from PyTorch's by {error:.1e} of the largest,"
            f" {MAX_LOGIT_ERROR:.0e} is allowed: use --precision fp32"
        )
    if source.parity is None:
        return None
    agreement = [one.argmax(1) == truth.argmax(1) for one, truth in zip(logits, expected, strict=True)]
    return Parity(
        batch_sizes=BATCH_SIZES,
        images=sum(map(len, compared)),
        real_images=len(photos),
        max_logit_error=error,
        max_logit_error_allowed=MAX_LOGIT_ERROR,
        top1_agreement=float(np.mean(np.concatenate(agreement))),
    )


def _logits(model: bytes, compared: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return [session.run(OUTPUT_NAMES, {INPUT_NAME: images})[OUTPUT_NAMES.index(LOGITS_NAME)] for images in compared]


def _rename(names: MutableSequence[str], renamed: dict[str, str]) -> None:
    for at, name in enumerate(names):
        names[at] = renamed.get(name, name)
