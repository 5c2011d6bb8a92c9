"""Half precision: converts the network of a complete graph to FP16; the graph's inputs and outputs do not change.

TensorRT's networks are strongly typed: the ONNX file alone decides their precision.
"""

from collections.abc import Iterable, Iterator, MutableSequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.errors import ExpectedError, first_line
from models.manifest import LOGITS_NAME

_PIXELS = "pixels_fp16"
_LOGITS = "logits_fp16"


class HalfError(ExpectedError):
    """A graph is not laid out like an exported one."""


def to_half(model: bytes) -> bytes:
    """Convert the network of a complete graph to FP16: everything from its first convolution to its logits.

    Normalisation before it, softmax, ranking and activation maps after it stay in FP32, and so do the graph's inputs
    and outputs.

    Raises:
        HalfError: the graph has no convolution or no logits, or an operator that computes in FP32 only.
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
        for attribute in node.attribute:
            if (node.op_type, attribute.name, attribute.i) == ("Cast", "to", TensorProto.FLOAT):
                attribute.i = TensorProto.FLOAT16
    halved = {name for node in network for name in node.output}
    parameters = {name for node in network for name in node.input}
    for tensor in graph.initializer:
        if tensor.name in parameters and tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
            halved.add(tensor.name)
    nodes = [
        *graph.node[:first],
        helper.make_node("Cast", [pixels], [_PIXELS], "to_half", to=TensorProto.FLOAT16),
        *network,
        helper.make_node("Cast", [_LOGITS], [LOGITS_NAME], "from_half", to=TensorProto.FLOAT),
        *_in_single(graph.node[last + 1 :], halved),
    ]
    del graph.node[:]
    del graph.value_info[:]  # the types of intermediate values, which have changed
    graph.node.extend(nodes)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise HalfError(f"the network cannot be converted to half precision: {first_line(error)}") from error
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _in_single(nodes: Iterable[onnx.NodeProto], halved: set[str]) -> Iterator[onnx.NodeProto]:
    """Make the nodes after the network compute in FP32: cast their FP16 inputs, of a Gather only the rows it takes."""
    cast: set[str] = set()
    for node in nodes:
        if node.op_type == "Gather" and node.input[0] in halved:
            (rows,) = node.output
            node.output[0] = f"{rows}_fp16"
            yield node
            yield helper.make_node("Cast", [f"{rows}_fp16"], [rows], f"{rows}_from_half", to=TensorProto.FLOAT)
            continue
        for name in halved.intersection(node.input) - cast:
            yield helper.make_node("Cast", [name], [f"{name}_fp32"], f"{name}_from_half", to=TensorProto.FLOAT)
            cast.add(name)
        _rename(node.input, {name: f"{name}_fp32" for name in cast})
        yield node


def _rename(names: MutableSequence[str], renamed: dict[str, str]) -> None:
    for at, name in enumerate(names):
        names[at] = renamed.get(name, name)
