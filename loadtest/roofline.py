"""The peak performance of a device, measured by PyTorch, and the work in a network's graph."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

from loadtest.machine import cpu_name

if TYPE_CHECKING:
    import torch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the server; read once, when torch loads OpenMP

ELEMENT_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Roofline:
    """The peak performance of a device."""

    device: str
    on_gpu: bool
    torch: str
    tera_flops: dict[str, float]
    """of a large matrix product, by precision; a multiplication and an addition count as two"""
    copy_gb_per_s: float
    """bytes read plus bytes written"""


@dataclass(frozen=True, slots=True)
class Work:
    """The work for one image in a network's convolutions and matrix products; all else can be fused into them."""

    giga_flops: float
    million_activations: float
    """values that they write; each is also read once"""

    def bound(self, roofline: Roofline, precision: str, batch: int, weights_bytes: int) -> float | None:
        """Upper bound on images per second; None if the precision has no measured peak."""
        peak = roofline.tera_flops.get(precision)
        if not peak:
            return None
        moved = weights_bytes + batch * 2e6 * self.million_activations * ELEMENT_BYTES[precision]
        return batch / max(batch * self.giga_flops / peak / 1e3, moved / roofline.copy_gb_per_s / 1e9)


def measure(seconds: float = 1.0) -> Roofline:
    """Time copies larger than any cache, and matrix products in each precision; on a CPU, convolutions too.

    Each is repeated for `seconds`.
    """
    import torch  # only measuring needs it

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    side, copied = (8192, 2**30) if on_gpu else (1024, 2**28)

    def tera_flops(kind: torch.dtype, *, tf32: bool = False) -> float:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        out = torch.empty_like(left)
        return 2 * side**3 / _fastest_s(lambda: torch.mm(left, right, out=out), device, seconds) / 1e12

    def convolution_tera_flops() -> float:
        """Through another library: on some CPUs the one for matrices uses only half the vector width."""
        batch, channels, width = 4, 256, 56
        images = torch.randn(batch, channels, width, width).to(memory_format=torch.channels_last)
        filters = torch.randn(channels, channels, 3, 3).to(memory_format=torch.channels_last)
        taken_s = _fastest_s(lambda: torch.conv2d(images, filters, padding=1), device, seconds)
        return 2 * batch * 9 * (channels * width) ** 2 / taken_s / 1e12

    peaks = {"fp32": tera_flops(torch.float32)}
    if on_gpu:
        peaks |= {"tf32": tera_flops(torch.float32, tf32=True), "fp16": tera_flops(torch.float16)}
    else:
        peaks["fp32"] = max(peaks["fp32"], convolution_tera_flops())
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _fastest_s(lambda: target.copy_(source), device, seconds)
    name = torch.cuda.get_device_name() if on_gpu else f"{cpu_name()} {torch.get_num_threads()} threads"
    return Roofline(name, on_gpu, torch.__version__, peaks, 2 * copied / copy_s / 1e9)


def count(model: bytes) -> Work:
    """Count the work of an ONNX graph for one image, of all its convolutions and matrix products."""
    proto = onnx.load_from_string(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.output):
        shapes[value.name] = [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
    flops, written = 0, 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        out = math.prod(shapes[node.output[0]])
        weight = shapes[node.input[1]]
        # Each output is a sum over one filter, which has one group's channels, or over the matrix's other side.
        is_conv = node.op_type == "Conv"
        flops += 2 * (out * math.prod(weight[1:]) if is_conv else math.prod(weight))
        written += out
    return Work(flops / 1e9, written / 1e6)


def _fastest_s(work: Callable[[], Any], device: "torch.device", seconds: float) -> float:
    """Seconds of the fastest of many calls: other programs on the machine can only slow one down."""
    import torch

    calls = 10 if device.type == "cuda" else 1
    taken, until = list[float](), time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - started) / calls)
    return min(taken)
