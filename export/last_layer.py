"""Adds outputs to ONNX graphs whose network ends in global average pooling and one linear layer.

These are features, the input of the linear layer, and class activation maps (Zhou et al., arXiv:1512.04150), which show
where in the image a class's logit comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir
from onnx_ir import DataType, Model, Node, Value, convenience
from onnx_ir.passes import common as passes

from export.parity import Head
from models.manifest import (
    ACTIVATION_MAPS_NAME,
    FEATURES_NAME,
    INDICES_NAME,
    LOGITS_NAME,
    MAPPED_CLASSES,
)

_SAME_VALUES = ("Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that leave each image's row of numbers unchanged, apart from rounding."""
_LAYOUTS = {(2, 3): (0, 1, 2, 3), (1, 2): (0, 3, 1, 2)}
"""Axes that are averaged over, and the permutation that turns the map into [N, C, h, w]."""


class Sizes(NamedTuple):
    """Sizes of features and activation maps, as in the manifest; None: the graph has neither."""

    features: int | None = None
    activation_maps: tuple[int, int] | None = None


@dataclass(frozen=True)
class _End:
    """The end of a network."""

    pooled: Value
    """float[N, C, ...]: the means, which are the features once they are [N, C]."""
    last_map: Value
    """float[N, C, h, w], or [N, h, w, C]."""
    order: tuple[int, ...]
    """Permutation that turns `last_map` into [N, C, h, w]."""
    weights: Value
    """float[classes, C], or [C, classes]."""
    transposed: bool
    """The weights are [C, classes]."""
    shape: tuple[int, int, int]
    """C, h, w."""


def answer_more(model: Model) -> None:
    """Add features and activation maps to a complete graph's outputs, if the end of its network allows it."""
    passes.ShapeInferencePass()(model)
    graph = model.graph
    outputs = {value.name: value for value in graph.outputs}
    logits, ranked = outputs[LOGITS_NAME], outputs[INDICES_NAME]
    end = _find(logits)
    if end is None or logits.shape is None or ranked.shape is None or not isinstance(ranked.shape[1], int):
        return
    channels, height, width = end.shape
    count = min(MAPPED_CLASSES, ranked.shape[1])
    made: list[Node] = []

    def then(operator: str, *inputs: Value, **attributes: object) -> Value:
        node = onnx_ir.node(operator, inputs, attributes)  # type: ignore[arg-type]
        made.append(node)
        made_of = DataType.FLOAT if operator == "Cast" else inputs[0].dtype
        node.outputs[0].dtype = made_of or DataType.FLOAT
        return node.outputs[0]

    def constant(name: str, *numbers: int) -> Value:
        value = Value(name=f"extras/{name}", const_value=onnx_ir.tensor(np.array(numbers, np.int64)))
        graph.register_initializer(value)
        return value

    def single(value: Value) -> Value:
        return value if value.dtype == DataType.FLOAT else then("Cast", value, to=DataType.FLOAT)

    features = then("Reshape", single(end.pooled), constant("features", -1, channels))
    best = then("Slice", ranked, constant("first", 0), constant("last", count), constant("classes", 1))
    weights = then("Transpose", end.weights, perm=[1, 0]) if end.transposed else end.weights
    rows = single(then("Gather", weights, best))
    last = single(end.last_map)
    last = last if end.order == (0, 1, 2, 3) else then("Transpose", last, perm=end.order)
    flat = then("Reshape", last, constant("places", 0, channels, height * width))
    maps = then("Reshape", then("MatMul", rows, flat), constant("maps", -1, count, height, width))
    for name, value, shape in (
        (FEATURES_NAME, features, (channels,)),
        (ACTIVATION_MAPS_NAME, maps, (count, height, width)),
    ):
        value.name, value.dtype = name, DataType.FLOAT
        value.shape = onnx_ir.Shape([logits.shape[0], *shape])
        graph.outputs.append(value)
    graph.extend(made)


def _find(logits: Value) -> _End | None:
    layer = _linear(logits)
    if layer is None:
        return None
    inputs, weights, transposed, _ = layer
    pooled = _before(inputs, _SAME_VALUES)
    node = pooled.producer()
    last_map = node.inputs[0] if node else None
    if node is None or last_map is None or last_map.shape is None or weights.shape is None:
        return None
    axes = _averaged(node)
    sizes = [size if isinstance(size, int) else None for size in last_map.shape]
    if len(sizes) != 4 or axes not in _LAYOUTS:
        return None
    order = _LAYOUTS[axes]
    channels, height, width = (sizes[axis] for axis in order[1:])
    if channels is None or height is None or width is None or weights.shape[0 if transposed else 1] != channels:
        return None
    return _End(pooled, last_map, order, weights, transposed, (channels, height, width))


class _Linear(NamedTuple):
    """The last layer."""

    inputs: Value
    weights: Value
    transposed: bool
    """The weights are [C, classes]."""
    bias: Value | None


def _linear(logits: Value) -> _Linear | None:
    node, bias = _before(logits, _SAME_VALUES).producer(), None
    if node is not None and node.op_type == "Add":
        sides = sorted(node.inputs, key=lambda value: value is not None and _is_constant(value))
        bias, node = sides[1], sides[0].producer() if sides[0] is not None else None
        if bias is None or not _is_constant(bias):
            return None
    if node is None or node.op_type not in ("Gemm", "MatMul"):
        return None
    inputs, weights = node.inputs[:2]
    bias = bias or (node.inputs[2] if len(node.inputs) > 2 else None)
    plain = [node.attributes.get_float(name, 1.0) == 1 for name in ("alpha", "beta")]
    flipped: int = node.attributes.get_int("transA", 0)
    if inputs is None or weights is None or not all(plain) or flipped:
        return None
    if not _is_constant(weights) or len(weights.shape or ()) != 2:
        return None
    return _Linear(inputs, weights, node.attributes.get_int("transB", 0) == 0, bias)


def _is_constant(value: Value) -> bool:
    return convenience.get_const_tensor(value) is not None


def _before(value: Value, kinds: Sequence[str]) -> Value:
    """Trace a value back through nodes of these kinds."""
    while (node := value.producer()) is not None and node.op_type in kinds and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _averaged(node: Node) -> tuple[int, ...]:
    """Return the axes over which a node averages a map; () if it does something else."""
    (image, *others) = node.inputs
    shape = image.shape if image is not None else None
    match node.op_type:
        case "GlobalAveragePool":
            return 2, 3
        case "ReduceMean":
            axes = convenience.get_const_tensor(others[0]) if others and others[0] is not None else None
            listed = node.attributes.get_ints("axes", ()) if axes is None else axes.numpy().ravel().tolist()
            return tuple(sorted(int(axis) % 4 for axis in listed))
        case "AveragePool" if shape is not None and not any(node.attributes.get_ints("pads", (0,))):
            return (2, 3) if tuple(node.attributes.get_ints("kernel_shape", ())) == tuple(shape[2:]) else ()
        case _:
            return ()


def sizes(content: bytes) -> Sizes:
    """Read the sizes of a complete graph's features and activation maps."""
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in onnx.load_model_from_string(content).graph.output
    }
    if FEATURES_NAME not in shapes:
        return Sizes()
    height, width = shapes[ACTIVATION_MAPS_NAME][2:]
    return Sizes(shapes[FEATURES_NAME][1], (height, width))


def head(content: bytes) -> Head:
    """Read the bias and temperature with which a complete graph turns its last layer's sums into logits."""
    graph = onnx_ir.from_proto(onnx.load_model_from_string(content)).graph
    logits, temperature = next(value for value in graph.outputs if value.name == LOGITS_NAME), 1.0
    divided = logits.producer()
    if divided is not None and divided.op_type == "Div":
        sums, divisor = divided.inputs
        known = None if divisor is None else convenience.get_const_tensor(divisor)
        if sums is not None and known is not None:
            logits, temperature = sums, float(known.numpy())
    layer = _linear(logits)
    tensor = convenience.get_const_tensor(layer.bias) if layer and layer.bias is not None else None
    return Head(None if tensor is None else tensor.numpy().astype(np.float32).ravel(), temperature)
