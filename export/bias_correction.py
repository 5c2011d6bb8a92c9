"""Bias correction: subtracts from a layer's bias what rounding its weights will add to its output on average.

Section 4.2 of arXiv:1906.04721, with measured means: E[y'] - E[y] = sum over inputs of (W' - W) E[x]. Rounding errors
cancel only if inputs have mean zero, which is not so after a ReLU.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.activations import Activations


def correct(model: onnx.ModelProto, activations: Activations, largest: int, excluded: set[str]) -> None:
    """Correct the biases of an FP32 graph whose weights will be rounded, symmetrically for each output channel.

    Args:
        model: changed in place.
        activations: of this graph, on real images.
        largest: magnitude of the largest quantised weight.
        excluded: names of layers that will not be rounded.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [
        node
        for node in model.graph.node
        if _has_outputs_first(node) and node.name not in excluded and node.input[1] in tensors
    ]
    for node in layers:
        inputs, weights, *bias = node.input
        values = numpy_helper.to_array(tensors[weights]).astype(np.float64)
        before = numpy_helper.to_array(tensors[bias[0]]) if bias else 0
        corrected = (before - _shift(values, activations.means(inputs), largest)).astype(np.float32)
        del node.input[2:]
        node.input.append(f"{node.name}_bias")  # a new one: two layers may share the old one
        model.graph.initializer.append(numpy_helper.from_array(corrected, node.input[2]))
    used = {name for node in model.graph.node for name in node.input}
    for tensor in tensors.values():
        if tensor.name not in used:
            model.graph.initializer.remove(tensor)


def _has_outputs_first(node: onnx.NodeProto) -> bool:
    """Whether a node is a layer with weights [out, in, ...], as PyTorch's convolutions and linear layers have."""
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
