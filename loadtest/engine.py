"""`python loadtest/engine.py`: what the engine does of what this device could do, with no server around it.

Every model of the repository by every backend that can run it here (`python -m server.engine.bench`), beside a roofline
that PyTorch measures on the same device: the time that a batch cannot go below is that of its multiplications at the
speed of a large matrix product, or of its bytes at the speed of a large copy, whichever is longer. Writes a table and
all figures to docs/measurements/engine-<device>.md and .json.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the server; read once, when torch loads OpenMP
import torch

ELEMENT_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "int8": 1}
ROOFLINE_S = 1.0
"""For each of its figures."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """What the device does at best."""

    device: str
    torch: str
    tera_flops: dict[str, float]
    """of a large matrix product, by precision; a multiplication and an addition count as two"""
    copy_gb_per_s: float
    """read and written together"""


@dataclass(frozen=True, slots=True)
class Work:
    """What one image takes of a network's convolutions and matrix products; all else can be fused into them."""

    giga_flops: float
    million_activations: float
    """values that they write; each is also read once"""

    def bound(self, roofline: Roofline, precision: str, batch: int, weights_bytes: int) -> float | None:
        """Images per second that cannot be exceeded; None where the precision has no peak."""
        peak = roofline.tera_flops.get(precision)
        if not peak:
            return None
        moved = weights_bytes + batch * 2e6 * self.million_activations * ELEMENT_BYTES[precision]
        return batch / max(batch * self.giga_flops / peak / 1e3, moved / roofline.copy_gb_per_s / 1e9)


def main() -> int:
    """Measure, print and write the table; 0 is success, 1 an error that was reported in one line."""
    options = _parse()
    command = [sys.executable, "-m", "server.engine.bench", "--repository", str(options.repository)]
    command += ["--seconds", str(options.seconds), "--batches", options.batches]
    command += ["--models", options.models] if options.models else []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = os.getloadavg()[0]
    roofline = measure_roofline(device)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode:
        return 1  # it has said why
    measured = json.loads(done.stdout)
    manifests = {
        (found["name"], found["version"]): found
        for path in options.repository.glob("*/*/manifest.json")
        if (found := json.loads(path.read_text()))
    }
    work = works(options.repository, manifests.values())
    for row in measured["rows"]:
        found = manifests[row["model"], row["version"]]
        one = work.get(_network(found))
        on_device = row["on_gpu"] == (device.type == "cuda")  # a GPU's roofline says nothing of its machine's CPU
        bound = one.bound(roofline, row["precision"], row["batch"], found["file"]["size_bytes"]) if one else None
        row["bound_images_per_s"] = bound if on_device else None
    result = {
        "load_average": load,
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
        "roofline": asdict(roofline),
        "work": {f"{name} at {side}": asdict(one) for (name, side, _), one in work.items()},
        **measured,
    }
    text = table(result)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", roofline.device.lower()).strip("-")
    (options.output / f"engine-{slug}.md").write_text(text)
    (options.output / f"engine-{slug}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure_roofline(device: torch.device) -> Roofline:
    """Time matrix products in each precision, on a CPU also as convolutions, and copies, larger than any cache."""
    on_gpu = device.type == "cuda"
    side, copied = (8192, 2**30) if on_gpu else (1024, 2**28)

    def tera_flops(kind: torch.dtype, *, tf32: bool = False) -> float:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        out = torch.empty_like(left)
        return 2 * side**3 / _seconds(lambda: torch.mm(left, right, out=out), device) / 1e12

    def convolution_tera_flops() -> float:
        """By another library: the CPU's for matrices uses half the width of the vectors of some."""
        batch, channels, width = 4, 256, 56
        images = torch.randn(batch, channels, width, width).to(memory_format=torch.channels_last)
        filters = torch.randn(channels, channels, 3, 3).to(memory_format=torch.channels_last)
        seconds = _seconds(lambda: torch.conv2d(images, filters, padding=1), device)
        return 2 * batch * 9 * (channels * width) ** 2 / seconds / 1e12

    peaks = {"fp32": tera_flops(torch.float32)}
    if on_gpu:
        peaks |= {"tf32": tera_flops(torch.float32, tf32=True), "fp16": tera_flops(torch.float16)}
    else:
        peaks["fp32"] = max(peaks["fp32"], convolution_tera_flops())
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _seconds(lambda: target.copy_(source), device)
    name = torch.cuda.get_device_name() if on_gpu else f"{_cpu_name()} {torch.get_num_threads()} threads"
    return Roofline(name, torch.__version__, peaks, 2 * copied / copy_s / 1e9)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of one call, the fastest of many: what else runs on the machine can only slow it."""
    calls = 10 if device.type == "cuda" else 1
    taken, until = [], time.perf_counter() + ROOFLINE_S
    while time.perf_counter() < until:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - started) / calls)
    return min(taken)


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def _network(found: Any) -> tuple[str, int, int]:
    """What files of one network have in common, whatever their precision and format."""
    return found["architecture"], found["preprocessing"]["crop"], found["num_classes"]


def works(root: Path, manifests: Any) -> dict[tuple[str, int, int], Work]:
    """Count the work of each network that there is an FP32 ONNX file of."""
    return {
        _network(found): count((root / found["name"] / str(found["version"]) / found["file"]["name"]).read_bytes())
        for found in manifests
        if (found["backend"], found.get("precision")) == ("onnx", "fp32")
    }


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


def table(result: Any) -> str:
    """All figures as Markdown."""
    roofline = result["roofline"]
    peaks = ", ".join(f"{name.upper()} {value:.3g} TFLOP/s" for name, value in roofline["tera_flops"].items())
    lines = [
        f"# The engine on {roofline['device']}",
        "",
        "    python loadtest/engine.py",
        "",
        f"Measured {result['measured']}, torch {roofline['torch']}; before it began, {result['load_average']:.1f}"
        f" processes wanted one of {os.cpu_count()} CPUs. Matrix product {peaks}; copy"
        f" {roofline['copy_gb_per_s']:.0f} GB/s. The bound is the roofline of the network's convolutions and matrix"
        " products; `-` where there is no ONNX file to count them in, or no peak for the precision.",
        "",
        *(
            f"- {name}: {one['giga_flops']:.2f} GFLOP and {one['million_activations']:.2f} million activations an image"
            for name, one in result["work"].items()
        ),
        "",
        "| model | backend | precision | batch | images/s | p50 ms | p99 ms | bound images/s | of bound |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        bound = row["bound_images_per_s"]
        share = (f"{bound:.0f}", f"{row['images_per_s'] / bound:.0%}") if bound else ("-", "-")
        cells = (row["model"], row["backend"], row["precision"], str(row["batch"]), f"{row['images_per_s']:.1f}")
        lines.append("| " + " | ".join((*cells, f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", *share)) + " |")
    if result["refused"]:
        lines += ["", "Not measured, and why:", ""]
        lines += [f"- {name}: {reason}" for name, reason in result["refused"].items()]
    return "\n".join(lines) + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="engine.py", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="FOLDER")
    parser.add_argument("--models", metavar="NAME,…", help="if not all")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64,128,256", metavar="N,N,…", help="default 1,2,4,…,256")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="for each figure (default 2)")
    parser.add_argument("--output", type=Path, default=Path("docs/measurements"), metavar="FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
