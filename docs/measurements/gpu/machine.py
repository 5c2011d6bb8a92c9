"""What this machine is: card, driver, versions, CPUs, and the roofline that figures of engines are compared with."""

import os
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from docs.measurements.gpu.part import Context, context
from loadtest import roofline

PACKAGES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-bindings",
    "numpy",
    "fastapi",
    "uvicorn",
)


def main() -> int:
    """Look, and measure the roofline."""
    ctx = context(("all",))
    ctx.result.put("python", sys.version)
    ctx.result.put("cpus", len(os.sched_getaffinity(0)))
    ctx.result.put("packages", {name: _version(name) for name in PACKAGES})
    ctx.result.check("nvidia-smi", lambda: _smi(ctx))
    ctx.result.check("roofline", lambda: _roofline(ctx))
    return ctx.result.exit_code()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _smi(ctx: Context) -> str:
    if not ctx.on_gpu:
        return "no GPU here"
    fields = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    ctx.result.put("gpu", found)
    return found


def _roofline(ctx: Context) -> str:
    measured = roofline.measure()
    ctx.result.put("roofline", asdict(measured))
    return f"{measured.tera_flops} TFLOP/s, {measured.copy_gb_per_s:.0f} GB/s"


if __name__ == "__main__":
    sys.exit(main())
