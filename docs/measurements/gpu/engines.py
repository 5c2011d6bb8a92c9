"""Engines alone: images a second of the backends with no server around them, beside the roofline of this machine.

`torch` runs the programs with CUDA graphs, `compiled` the FP16 one through torch.compile, `onnx` ONNX Runtime's CUDA
provider with CUDA graphs and, for one file, without. Images lie in page-locked memory, as the server's slots do.
"""

import json
import sys
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from docs.measurements.gpu.part import Context, context
from loadtest import roofline
from loadtest.roofline import Roofline, Work
from models import manifest
from server.engine import backends
from server.settings import Settings

LEAST_RUNS = 5
CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")


def main() -> int:
    """Measure all; 0: each could be run."""
    ctx = context(("torch", "onnx", "compiled"))
    limits = roofline.measure()
    ctx.result.put("roofline", {"tera_flops": limits.tera_flops, "copy_gb_per_s": limits.copy_gb_per_s})
    for network in (ctx.sizes.network, ctx.sizes.deep):
        for model, changes in ways(ctx, network):
            title = f"{model} {json.dumps(changes)}"
            ctx.result.check(title, partial(_measure, ctx, network, model, changes, limits))
    return ctx.result.exit_code()


def ways(ctx: Context, network: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the models of a network, and the settings that differ from the server's defaults."""
    half, full = f"{network}-torch-fp16", f"{network}-torch"
    match ctx.variant:
        case "torch":
            return [(half, {}), (full, {})]
        case "compiled":
            return [(half, {"torch_compile": True})]
        case _:
            cuda: dict[str, Any] = {"providers": CUDA} if ctx.on_gpu else {}
            graph = cuda | {"cuda_graph": True} if ctx.on_gpu else {}
            plain = [(f"{network}-fp16", cuda)] if network == ctx.sizes.network else []
            return [(f"{network}-fp16", graph), (network, graph), *plain]


def _measure(ctx: Context, network: str, model: str, changes: dict[str, Any], limits: Roofline) -> str:
    folder = ctx.repository / model / "1"
    found = manifest.read(folder)
    batches = ctx.sizes.batches
    if ctx.variant == "compiled" and not ctx.rehearse:
        batches = batches[: batches.index(128) + 1]  # each batch size is compiled
    settings = Settings(**{"max_batch": max(batches), **changes})
    began_s = time.monotonic()
    backend = backends.load(found, manifest.read_model_file(folder, found), settings)
    loaded_s = time.monotonic() - began_s
    work = _work(ctx, network)
    memory = np.random.default_rng(0).integers(0, 256, (max(batches), *found.input_shape), np.uint8)
    best = 0.0
    with backends.page_locked(memory) if backend.on_gpu else nullcontext():
        for batch in batches:
            images = list(memory[:batch])
            backend.run(images)
            taken_s: list[float] = []
            until_s = time.perf_counter() + ctx.sizes.seconds / 4
            while time.perf_counter() < until_s or len(taken_s) < LEAST_RUNS:
                started_s = time.perf_counter()
                backend.run(images)
                taken_s.append(time.perf_counter() - started_s)
            p50_s, p99_s = np.percentile(taken_s, (50, 99)).tolist()
            bound = work.bound(limits, found.precision, batch, found.file.size_bytes) if work else None
            row = {
                "model": model, "settings": changes, "batch": batch, "images_per_s": round(batch / p50_s, 1),
                "p50_ms": round(1e3 * p50_s, 3), "p99_ms": round(1e3 * p99_s, 3), "loaded_s": round(loaded_s, 1),
                "of_bound": round(batch / p50_s / bound, 3) if bound else None,
            }  # fmt: skip
            ctx.result.add("rows", row)
            best = max(best, batch / p50_s)
    backend.close()
    return f"up to {best:.0f} images/s, loaded in {loaded_s:.1f} s"


def _work(ctx: Context, network: str) -> Work | None:
    """Count the work of the network's FP32 ONNX file; None if it could not be built."""
    path = ctx.repository / network / "1" / "model.onnx"
    return roofline.count(path.read_bytes()) if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
