"""The temperature of a complete graph: the graph divides its logits before softmax, and outputs the quotients.

This leaves the ranking unchanged, and affects everything that is computed from logits, in the graph or after it:
softmax and top-k, averages over crops and members, prediction sets. Converters to lower precision get the graph without
a temperature, which is not part of the network.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.errors import ExpectedError
from models.manifest import LOGITS_NAME

_NODE = "temperature"
_RAW = "logits_of_network"


class TemperatureError(ExpectedError):
    """A file is not a complete graph."""


def divided(model: bytes, temperature: float) -> bytes:
    """Divide the logits of a complete graph, of any precision, by a temperature, which replaces any that it has.

    Raises:
        TemperatureError: the graph has no logits.
    """
    proto = onnx.load_from_string(undivided(model))
    graph = proto.graph
    at = next((at for at, node in enumerate(graph.node) if LOGITS_NAME in node.output), None)
    if at is None:
        raise TemperatureError("the ONNX file has no logits to divide by a temperature: export the model again")
    outputs = graph.node[at].output
    outputs[list(outputs).index(LOGITS_NAME)] = _RAW
    graph.initializer.append(numpy_helper.from_array(np.array(temperature, np.float32), _NODE))
    graph.node.insert(at + 1, helper.make_node("Div", [_RAW, _NODE], [LOGITS_NAME], _NODE))
    return _checked(proto)


def undivided(model: bytes) -> bytes:
    """Remove the temperature from a complete graph; a graph without one is returned unchanged."""
    proto = onnx.load_from_string(model)
    graph = proto.graph
    division = next((node for node in graph.node if node.name == _NODE and LOGITS_NAME in node.output), None)
    if division is None:
        return model
    graph.node.remove(division)
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == _NODE))
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == _RAW:
                    names[index] = LOGITS_NAME
    return _checked(proto)


def _checked(proto: onnx.ModelProto) -> bytes:
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content
