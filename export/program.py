"""The complete graph as a program of PyTorch: the reference that other runtimes are measured against."""

import io
import operator
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from export.graph import CompleteGraph, fold_batch_norm
from export.last_layer import Sizes
from export.parity import Head
from models.manifest import INPUT_NAME, MAPPED_CLASSES, OUTPUT_NAMES, Activation, Preprocessing

_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""Metadata in which the exporter records where each operation came from: files and lines on this machine."""
_SAME_VALUES = ("to", "_to_copy", "view", "reshape", "flatten", "squeeze", "dropout", "clone", "contiguous", "alias")
"""Operations that leave each image's row of numbers unchanged, apart from rounding."""


class HalfNetwork(nn.Module):
    """A network that computes in FP16, but takes pixels and returns logits in FP32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify float32[N, 3, H, W]: logits float32[N, num_classes]."""
        logits: Tensor = self.network(pixels.half())
        return logits.float()


def complete(
    network: nn.Module, preprocessing: Preprocessing, top_k: int, activation: Activation, precision: str
) -> nn.Module:
    """Make the complete graph of a network, in evaluation mode and in fp32 or fp16; the network is not modified."""
    folded = fold_batch_norm(network)  # before the rounding to half precision, which then loses less
    computed = HalfNetwork(folded) if precision == "fp16" else folded
    return CompleteGraph(computed, preprocessing, top_k, activation).eval()


def to_program(graph: nn.Module, crop: tuple[int, int]) -> bytes:
    """Export a graph with a free batch size by `torch.export`; PyTorch can run it without our code.

    Args:
        graph: a complete graph, in evaluation mode.
        crop: height and width of the images.

    Returns:
        What `torch.export.save` writes, without a trace of the machine it was made on. Features and activation maps
        are two more outputs, if the end of the network allows them (see `last_layer`).
    """
    # Two images, not one: the exporter takes a dimension of one for a constant.
    example = torch.zeros(2, *crop, 3, dtype=torch.uint8)
    batch = {INPUT_NAME: {0: torch.export.Dim("N")}}
    program = torch.export.export(graph, (example,), dynamic_shapes=batch)
    if (more := _answering_more(program)) is not None:
        program = torch.export.export(more, (example,), dynamic_shapes=batch)
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


class LastLayer(NamedTuple):
    """The sizes of a program's features and activation maps, and the head that verifies them."""

    sizes: Sizes
    head: Head


def last_layer_of(content: bytes) -> LastLayer:
    """Read the sizes and the head from a program that `to_program` made."""
    program = torch.export.load(io.BytesIO(content))
    outputs = [node.meta["val"].shape for node in program.graph.output_node().args[0]]
    if len(outputs) == len(OUTPUT_NAMES):
        return LastLayer(Sizes(), Head())
    *_, features, maps = outputs
    end = _end(program.module(check_guards=False))
    layer = end and end.bias
    bias = None if layer is None else layer.detach().float().numpy()
    return LastLayer(Sizes(features[1], (maps[2], maps[3])), Head(bias))


class _End(NamedTuple):
    """How a network ends: global average pooling and one linear layer."""

    pooled: fx.Node
    last_map: fx.Node
    weights: fx.Node
    bias: Tensor | None


def _answering_more(program: torch.export.ExportedProgram) -> fx.GraphModule | None:
    module = program.module(check_guards=False)
    end = _end(module)
    if end is None:
        return None
    output = module.graph.output_node()
    outputs = tuple(output.args[0])  # type: ignore[arg-type] # a program has several
    with module.graph.inserting_before(output):
        more = module.graph.call_function(_extras, (end.pooled, end.last_map, end.weights, outputs[1]))
        features, maps = (module.graph.call_function(getitem, (more, at)) for at in range(2))
    output.args = ((*outputs, features, maps),)
    module.graph.set_codegen(fx.graph.CodeGen())  # the old one expects the old number of outputs
    module.recompile()
    return module


def _extras(pooled: Tensor, last_map: Tensor, weights: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Compute features float32[N, C] and activation maps float32[N, K, h, w]."""
    rows = weights[indices[:, :MAPPED_CLASSES].long()].float()
    maps = rows @ last_map.float().flatten(2)
    return pooled.flatten(1).float(), maps.view(-1, rows.shape[1], *last_map.shape[2:])


def _end(module: fx.GraphModule) -> _End | None:
    logits: Any = module.graph.output_node().args[0][2]  # type: ignore[index]
    layer = _before(logits)
    if _name(layer) != "linear":
        return None
    arguments: tuple[Any, ...] = layer.args
    inputs, weights, *bias = arguments
    pooled = _before(inputs)
    pooling: tuple[Any, ...] = (*pooled.args, None, None)
    last_map, how = pooling[:2]
    averages = _name(pooled) == "mean" and [axis % 4 for axis in how or ()] == [2, 3]
    if not (averages or (_name(pooled) == "adaptive_avg_pool2d" and how in (1, [1, 1]))):
        return None
    if len(last_map.meta["val"].shape) != 4 or weights.op != "get_attr":
        return None
    found = bias[0] if bias else None
    parameter = operator.attrgetter(str(found.target))(module) if isinstance(found, fx.Node) else None
    return _End(pooled, last_map, weights, parameter)


def _before(node: fx.Node) -> fx.Node:
    """Trace a value back through operations that leave it unchanged."""
    while _name(node) in _SAME_VALUES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _name(node: fx.Node) -> str:
    """Name of one of PyTorch's own operations, without its overload."""
    return str(node.target).removeprefix("aten.").partition(".")[0]
