"""The complete graph as a program of PyTorch: the reference that other runtimes are measured against."""

import io

import torch
from torch import Tensor, nn

from export.graph import CompleteGraph, fold_batch_norm
from models.manifest import INPUT_NAME, Activation, Preprocessing

_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""What the exporter notes of where each operation came from: files and lines on this machine."""


class HalfNetwork(nn.Module):
    """A network that computes in FP16; pixels come and logits leave in FP32."""

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
    """Make the complete graph of a network, in evaluation mode and in fp32 or fp16; the network stays as it is."""
    folded = fold_batch_norm(network)  # before it is rounded to half precision, which keeps more of it
    computed = HalfNetwork(folded) if precision == "fp16" else folded
    return CompleteGraph(computed, preprocessing, top_k, activation).eval()


def to_program(graph: nn.Module, crop: tuple[int, int]) -> bytes:
    """Export a graph with a free batch size by `torch.export`; whatever has PyTorch can run it without our code.

    Args:
        graph: as CompleteGraph, in evaluation mode.
        crop: height and width of the images.

    Returns:
        What `torch.export.save` writes. It holds no trace of the machine it was made on.
    """
    # Two images, not one: the exporter takes a dimension of one for a constant.
    example = torch.zeros(2, *crop, 3, dtype=torch.uint8)
    batch = {INPUT_NAME: {0: torch.export.Dim("N")}}
    program = torch.export.export(graph, (example,), dynamic_shapes=batch)
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()
