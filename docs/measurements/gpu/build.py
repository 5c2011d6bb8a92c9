"""Export the models that the other parts need, `first` those of the torch backend, `rest` all others."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from docs.measurements.gpu.part import ROOT, Context, context

Command = tuple[str, ...]


def main() -> int:
    """Build all; 0: each could be built."""
    ctx = context(("first", "rest"))
    cpus = len(os.sched_getaffinity(0))
    together = max(1, min(8, cpus // 2))
    threads = str(max(1, cpus // together))

    def build(name: str, commands: list[Command]) -> None:
        ctx.result.check(name, lambda: _run(commands, ctx, threads))

    with ThreadPoolExecutor(together) as pool:
        list(pool.map(build, *zip(*chains(ctx).items(), strict=True)))
    return ctx.result.exit_code()


def chains(ctx: Context) -> dict[str, list[Command]]:
    """Commands by what they are for; those of one list need each other."""
    random = "--random-weights"
    network, deep = ctx.sizes.network, ctx.sizes.deep
    trained = {name: ("--weights", str(checkpoint)) for name, checkpoint in ctx.cifar().items()}
    if ctx.variant == "first":
        return {
            f"{network}, torch fp16": [("to_torch", network, random, "--precision", "fp16")],
            f"{network}, torch fp32": [("to_torch", network, random)],
            "efficientnet, torch fp16": [("to_torch", "efficientnet_lite0", "--precision", "fp16")],
            **{f"{name}, torch fp32": [("to_torch", name, *weights)] for name, weights in trained.items()},
        }
    photos = str(ROOT / "export" / "photos")
    # Three photos calibrate for speed, not for accuracy.
    int8 = ("quantize", network, "--precision", "int8", "--calibration", photos, "--seconds", "0",
            "--min-agreement", "0", "--method", "minmax")  # fmt: skip
    half = ("--precision", "fp16", "--seconds", "0", "--accept-undecided")
    return {
        f"{network}, onnx fp32, fp16, int8": [("to_onnx", network, random), ("quantize", network, *half), int8],
        f"{deep}, onnx fp32, fp16": [("to_onnx", deep, random), ("quantize", deep, *half)],
        f"{deep}, torch fp16": [("to_torch", deep, random, "--precision", "fp16")],
        f"{deep}, torch fp32": [("to_torch", deep, random)],
        "efficientnet, onnx": [("to_onnx", "efficientnet_lite0")],
        **{f"{name}, onnx": [("to_onnx", name, *weights)] for name, weights in trained.items()},
    }


def _run(commands: list[Command], ctx: Context, threads: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    for program, *arguments in commands:
        command = [sys.executable, f"export/{program}.py", *arguments, "--repository", str(ctx.repository)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stderr[-1500:]}")
    return f"{len(commands)} exported"


if __name__ == "__main__":
    sys.exit(main())
