"""Splices a foreign network into our complete graph, between normalisation and ranking.

The graph is exported from `CompleteGraph`, as for our own networks, with a hole in the network's place.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from onnx import helper
from onnx_ir import Graph, Model, Node, SymbolicDim, Value, convenience
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules
from onnxscript.version_converter import ConvertVersionPass
from torch import Tensor, nn

from export import graph
from export.graph import CompleteGraph
from export.onnx_file import Layout, OnnxFile, OnnxFileError
from export.original import SMALLEST, Meaning, Taken
from models.manifest import Preprocessing

_DOMAIN, _HOLE = "imported", "Network"
_BATCH = "N"
_RULES = (
    rules.matmul_add_to_gemm_rule,
    rules.transpose_b_matmul_add_to_gemm_rule,
    rules.transpose_transpose_rule,
    rules.no_op_transpose_rule,
)
"""They merge a classifier's last layer into one operator, which quantisation knows, and drop double transpositions."""


class Hole(nn.Module):
    """Placeholder for a foreign network: converts pixels to the network's input, and the network's output to logits."""

    def __init__(self, layout: Layout, kind: "np.dtype[np.generic]", taken: Taken) -> None:
        super().__init__()
        self.layout = layout
        self.kind = torch.from_numpy(np.empty(0, kind)).dtype
        self.taken = taken
        self.given = torch.from_numpy(np.empty(0, taken.kind)).dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify normalised float32[N, C, H, W]: logits float32[N, num_classes]."""
        if self.layout == "nhwc":
            pixels = pixels.permute(0, 2, 3, 1)
        shape = [pixels.shape[0], *self.taken.shape]
        hole = torch.onnx.ops.symbolic
        given = hole(f"{_DOMAIN}::{_HOLE}", [pixels.to(self.kind)], dtype=self.given, shape=shape, version=1)
        values = (given.flatten(1) if self.taken.shape else given.unsqueeze(1)).float()
        if self.taken.scores == "logits":
            return values
        smallest = SMALLEST[self.taken.kind]
        logarithm = values.clamp(smallest, 1.0).log()
        return logarithm if self.taken.activation == "softmax" else logarithm - (1 - values).clamp(smallest, 1.0).log()


def complete(
    file: OnnxFile, meaning: Meaning, frozen: int | None, preprocessing: Preprocessing, top_k: int, opset: int
) -> bytes:
    """Make the complete graph of a file's network, with a free batch size.

    Args:
        file: the file; it is not modified.
        meaning: of its scores.
        frozen: its fixed batch size; None: free.
        preprocessing: of the images; its crop is the size of the network's input.
        top_k: how many classes are ranked.
        opset: to raise the file to, unless it has a later one.

    Raises:
        OnnxFileError: the file cannot be raised to the opset.
    """
    target = max(opset, file.opset)
    whole = frame(file.layout, file.kind, meaning.taken, preprocessing, top_k, target)
    network = _network(file, meaning)
    _raise(file, network, target)
    _set_sizes(file, network, preprocessing)
    fold_constants(network, should_fold=_is_written_down)
    if frozen is not None:
        _free_batch(network.graph, frozen)
    _fill(whole, network)
    rewrite(whole, _RULES)
    return graph.finish(whole)


def frame(
    layout: Layout, kind: "np.dtype[np.generic]", taken: Taken, preprocessing: Preprocessing, top_k: int, opset: int
) -> Model:
    """Export the complete graph with a hole in it, for a network with this input and output."""
    complete = CompleteGraph(Hole(layout, kind, taken), preprocessing, top_k, taken.activation)
    return graph.trace(complete, preprocessing.crop, opset)


def _network(file: OnnxFile, meaning: Meaning) -> Model:
    """Copy the part of the file between the image and the values taken from it."""
    cut = convenience.extract(file.model.graph, [file.input], [meaning.inner or file.output])
    return Model(cut, ir_version=file.model.ir_version)


def _raise(file: OnnxFile, network: Model, opset: int) -> None:
    with graph.silenced():  # the pass logs what it does
        ConvertVersionPass(opset, fallback=True)(network)
    if network.opset_imports[""] != opset:
        raise OnnxFileError(
            f"{file.path} has opset {file.opset}, which cannot be raised: export it once more with opset {opset}"
        )


def _set_sizes(file: OnnxFile, network: Model, preprocessing: Preprocessing) -> None:
    """Make the batch size free and the image's size fixed, and clear the shapes inferred from other sizes."""
    image = network.graph.inputs[0]
    height, width = preprocessing.crop
    sizes = (file.channels, height, width) if file.layout == "nchw" else (height, width, file.channels)
    for node in network.graph:
        for value in node.outputs:
            value.shape = None
    image.shape = onnx_ir.Shape([SymbolicDim(_BATCH), *sizes])


def _is_written_down(node: Node) -> bool | None:
    """Also fold ConstantOfShape, from which shapes are computed; None leaves other nodes to the default."""
    return node.op_type == "ConstantOfShape" or None


def _free_batch(network: Graph, frozen: int) -> None:
    """Replace a batch size that was written into the network by a free one.

    The batch is assumed to be the first axis of each tensor, as in networks exported from frameworks; the parity gate
    refuses the others.
    """
    for node in list(network):
        if node.op_type == "Reshape":
            _free_reshape(network, node, frozen)
        elif node.op_type == "Expand":
            _replace_shape(network, node, lambda shape: [1, *shape[1:]] if shape[0] == frozen else None)
        elif node.op_type == "Flatten" and frozen == 1 and node.attributes.get_int("axis", 1) == 0:
            node.attributes["axis"] = onnx_ir.AttrInt64("axis", 1)
        elif node.op_type == "Gather" and frozen == 1:
            _skip_gather(node)
        elif node.op_type == "Concat" and node.attributes.get_int("axis", 0) != 0:
            _widen_constants(network, node, frozen)


def _free_reshape(network: Graph, node: Node, frozen: int) -> None:
    def free(shape: list[int]) -> list[int] | None:
        if shape[0] in (0, -1):
            return None
        if -1 not in shape:
            return [-1, *shape[1:]]
        return [0, *shape[1:]] if shape[0] == frozen and 0 not in shape else None

    if _replace_shape(network, node, free):
        node.attributes.pop("allowzero", None)


def _replace_shape(network: Graph, node: Node, free: Callable[[list[int]], list[int] | None]) -> bool:
    """Replace a node's second input if it is a constant shape that `free` changes; return whether it was replaced."""
    shape = _constant(node.inputs[1])
    freed = None if shape is None or not shape.size else free([int(size) for size in shape])
    if freed is None:
        return False
    node.replace_input_with(1, _initializer(network, f"{node.outputs[0].name}/shape", np.array(freed, np.int64)))
    return True


def _skip_gather(node: Node) -> None:
    """Bypass a Gather of the first image: in a batch of one, that is the whole batch."""
    indices = _constant(node.inputs[1])
    if node.attributes.get_int("axis", 0) == 0 and indices is not None and indices.tolist() == [0] and node.inputs[0]:
        node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)


def _widen_constants(network: Graph, node: Node, frozen: int) -> None:
    """Repeat for each image a constant that is joined to its data, such as a transformer's class token."""
    constants = [_constant(value) for value in node.inputs]
    data = next((value for value, known in zip(node.inputs, constants, strict=True) if known is None), None)
    for at, values in enumerate(constants):
        if data is None or values is None or len(values) != frozen or not (values == values[:1]).all():
            continue
        name = f"{node.outputs[0].name}/{at}"
        row = _initializer(network, f"{name}/row", values[:1])
        others = _initializer(network, f"{name}/others", np.array(values.shape[1:], np.int64))
        count = onnx_ir.node("Shape", [data], {"start": 0, "end": 1})
        shape = onnx_ir.node("Concat", [count.outputs[0], others], {"axis": 0})
        expand = onnx_ir.node("Expand", [row, shape.outputs[0]])
        network.insert_before(node, [count, shape, expand])
        node.replace_input_with(at, expand.outputs[0])


def _constant(value: Value | None) -> NDArray[np.generic] | None:
    tensor = None if value is None else convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _initializer(network: Graph, name: str, values: NDArray[np.generic]) -> Value:
    value = Value(name=name, const_value=onnx_ir.tensor(values, name=name))
    network.register_initializer(value)
    return value


def _fill(whole: Model, network: Model) -> None:
    """Put the network into the hole."""
    hole = next(node for node in whole.graph if node.domain == _DOMAIN)
    (logits,), (image,), (scores,) = hole.outputs, network.graph.inputs, network.graph.outputs
    convenience.replace_all_uses_with(image, hole.inputs[0] or image)
    network.graph.outputs.clear()
    nodes = list(network.graph)
    network.graph.remove(nodes)
    constants = dict(network.graph.initializers)
    network.graph.initializers.clear()
    for name, value in constants.items():
        value.name = f"network.{name}"
        whole.graph.register_initializer(value)
    convenience.replace_nodes_and_values(whole.graph, hole, [hole], nodes, [logits], [scores])
    whole.opset_imports.update({domain: version for domain, version in network.opset_imports.items() if domain})
    whole.opset_imports.pop(_DOMAIN)
    whole.ir_version = max(
        whole.ir_version,
        helper.find_min_ir_version_for(
            [helper.make_opsetid(*one) for one in whole.opset_imports.items()], ignore_unknown=True
        ),
    )
    passes.NameFixPass()(whole)
    passes.ShapeInferencePass()(whole)
