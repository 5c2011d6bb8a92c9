"""The complete graph as a program of PyTorch: the reference that other runtimes are measured against."""

import io
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.runtimes import Outputs, Run
from models.manifest import INPUT_NAME

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


def fused(network: nn.Module) -> nn.Module:
    """Return a copy whose batch norms are folded into the convolutions before them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from torch.fx.experimental.optimization import fuse

        folded: nn.Module = fuse(network)
        return folded


def to_program(graph: nn.Module, crop: int) -> bytes:
    """Export a graph with a free batch size by `torch.export`; whatever has PyTorch can run it without our code.

    Args:
        graph: as CompleteGraph, in evaluation mode.
        crop: height and width of the images.

    Returns:
        What `torch.export.save` writes. It holds no trace of the machine it was made on.
    """
    # Two images, not one: the exporter takes a dimension of one for a constant.
    example = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
    batch = {INPUT_NAME: {0: torch.export.Dim("N")}}
    program = torch.export.export(graph, (example,), dynamic_shapes=batch)
    for node in program.graph.nodes:
        for key in _TRACES:
            node.meta.pop(key, None)
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def load(content: bytes) -> Run:
    """Load a program as it is, on the CPU."""
    program = torch.export.load(io.BytesIO(content)).module()

    def run(images: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            return Outputs(*(output.numpy() for output in program(torch.from_numpy(images.copy()))))

    return run
