"""Bias correction: what rounding a layer's weights adds to its output on average is taken off its bias beforehand.

Section 4.2 of arXiv:1906.04721, with means that are measured: E[y'] - E[y] = sum over inputs of (W' - W) E[x]. Rounding
errors cancel only where inputs have mean zero, which they have not after a ReLU.
"""

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.manifest import INPUT_NAME

_BATCH = 8


def correct(model: onnx.ModelProto, images: NDArray[np.uint8], largest: int, excluded: set[str]) -> None:
    """Correct the biases of a graph in FP32 whose weights are going to be rounded, symmetrically by output channel.

    Args:
        model: changed in place.
        images: to measure means on, uint8[N, H, W, 3].
        largest: magnitude of the largest quantised weight.
        excluded: names of layers that will not be rounded.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [
        node
        for node in model.graph.node
        if _has_outputs_first(node) and node.name not in excluded and node.input[1] in tensors
    ]
    means = _channel_means(model, sorted({node.input[0] for node in layers}), images)
    for node in layers:
        inputs, weights, *bias = node.input
        values = numpy_helper.to_array(tensors[weights]).astype(np.float64)
        before = numpy_helper.to_array(tensors[bias[0]]) if bias else 0
        corrected = (before - _shift(values, means[inputs], largest)).astype(np.float32)
        del node.input[2:]
        node.input.append(f"{node.name}_bias")  # of its own: two layers may share one
        model.graph.initializer.append(numpy_helper.from_array(corrected, node.input[2]))
    used = {name for node in model.graph.node for name in node.input}
    for tensor in tensors.values():
        if tensor.name not in used:
            model.graph.initializer.remove(tensor)


def _has_outputs_first(node: onnx.NodeProto) -> bool:
    """Tell whether it is a layer whose weights are [out, in, ...], as those of PyTorch's linear layers are, too."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return node.op_type == "Conv" or (node.op_type == "Gemm" and transposed)


def _shift(weights: NDArray[np.float64], means: NDArray[np.float64], largest: int) -> NDArray[np.float64]:
    """Compute what rounding adds to each output channel.

    Args:
        weights: float64[out, in / groups, ...].
        means: of the inputs, float64[in].
        largest: magnitude of the largest quantised weight.
    """
    channels = weights.reshape(*weights.shape[:2], -1)
    scale = np.abs(channels).max((1, 2), keepdims=True) / largest
    scale[scale == 0] = 1
    errors = (np.rint(channels / scale) * scale - channels).sum(2)
    groups = len(means) // weights.shape[1]
    inputs = np.repeat(means.reshape(groups, -1), len(weights) // groups, axis=0)
    result: NDArray[np.float64] = (errors * inputs).sum(1)
    return result


def _channel_means(
    model: onnx.ModelProto, names: list[str], images: NDArray[np.uint8]
) -> dict[str, NDArray[np.float64]]:
    """Mean of each channel of activations [N, C] or [N, C, H, W], float64[C]."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    sums = [np.zeros(1)] * len(names)
    for start in range(0, len(images), _BATCH):
        outputs = session.run(names, {INPUT_NAME: images[start : start + _BATCH]})
        sums = [
            total + output.reshape(*output.shape[:2], -1).mean(2, dtype=np.float64).sum(0)
            for total, output in zip(sums, outputs, strict=True)
        ]
    return {name: total / len(images) for name, total in zip(names, sums, strict=True)}
