"""Right: the tests that need a GPU, and real photos whose classes over HTTP are those of PyTorch in FP32 on a CPU.

`torch` runs the programs on the GPU; `onnx` runs the files by ONNX Runtime's CUDA provider, with and without CUDA
graphs, and the programs once more, when all photos have come.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from docs.measurements.gpu.part import REAL_PHOTOS, ROOT, Context, context
from docs.measurements.gpu.serving import serving
from export.reference import reference_logits
from loadtest.loops import Target, ask_alone
from tests.reference import load_network, reference_pixels

EFFICIENTNET = "efficientnet_lite0"
CLIENTS, BATCH = 8, 25
CUDA = {"providers": "CUDAExecutionProvider,CPUExecutionProvider"}


def main() -> int:
    """Do all checks; 0: all are right."""
    ctx = context(("torch", "onnx"))
    cifar = list(ctx.cifar())
    programs = [f"{EFFICIENTNET}-torch-fp16", *(f"{name}-torch" for name in cifar)]
    files = [EFFICIENTNET, *cifar]
    if ctx.variant == "torch":
        _served(ctx, "torch", programs, {})
    else:
        for graph in ("false", "true"):
            _served(ctx, f"onnx, cuda_graph {graph}", files, CUDA | {"cuda_graph": graph} if ctx.on_gpu else {})
        _served(ctx, "torch", programs[:1], {})
        if not ctx.rehearse:
            ctx.result.check("all photos were there", lambda: _all_there(ctx))
    for mark in ("gpu", "torchvision") if ctx.variant == "torch" else ("gpu",):
        ctx.result.check(f"tests marked {mark}", partial(_tests, ctx, mark))
    return ctx.result.exit_code()


def _tests(ctx: Context, mark: str) -> str:
    report = ctx.folder / f"tests-{ctx.variant}-{mark}.xml"
    # These files alone: others may need packages that are not on the machine.
    marked = re.compile(rf"mark\.{mark}\b")
    paths = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if marked.search(path.read_text())]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", mark, "-rsfE"]
    # The machine may have other plugins, and packages of other versions, whose warnings are no fault of the server.
    command += ["-p", "pytest_timeout", "-W", "default", f"--junitxml={report}", "--durations=5"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([*command, *paths], cwd=ROOT, env=environment, check=False)  # noqa: S603
    suites = ElementTree.parse(report).getroot().findall("testsuite")  # noqa: S314
    counts = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "skipped", "failures", "errors")
    }
    ctx.result.put(f"tests marked {mark}", counts)
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {counts}")
    return str(counts)


def _served(ctx: Context, title: str, models: list[str], flags: dict[str, str]) -> None:
    def serve() -> str:
        with serving(
            ctx.repository,
            {"models": ",".join(models), "stall_timeout_ms": 120_000, **flags},
            patience_s=ctx.sizes.patience_s,
        ) as server:
            for model in models:
                ctx.result.check(f"{model} by {title}", partial(_compare, ctx, server.url, model))
        return f"{len(models)} models served"

    ctx.result.check(f"server: {title}", serve)


def _compare(ctx: Context, url: str, model: str) -> str:
    network = model.partition("-torch")[0]
    paths = ctx.photos() if network == EFFICIENTNET else ctx.cifar_images()
    served = uvloop.run(_served_top1(f"{url}/classify?model={model}", [path.read_bytes() for path in paths]))
    expected = reference_top1(ctx, network, paths)
    same = int((served == expected).sum())
    # Of 250 photos, and of 1,000 small images, of which JPEG decoders make other pixels.
    allowed = 1 if network == EFFICIENTNET else 2
    row = {"model": model, "images": len(paths), "same_class": same, "right": _right(network, paths, served.tolist())}
    ctx.result.add("agreement", row)
    if same < len(paths) - allowed:
        raise RuntimeError(f"{same} of {len(paths)} images have the class that PyTorch finds on the CPU")
    return f"{same} of {len(paths)}"


async def _served_top1(url: str, images: list[bytes]) -> NDArray[np.int64]:
    """Ask by several clients at the same time, so that there are batches."""
    shares = await asyncio.gather(
        *(ask_alone(Target(url), images[at::CLIENTS]) for at in range(min(CLIENTS, len(images))))
    )
    found = np.zeros(len(images), np.int64)
    for at, (_, photos) in enumerate(shares):
        found[at::CLIENTS] = [photo.top1 for photo in photos]
    return found


def reference_top1(ctx: Context, network: str, paths: list[Path]) -> NDArray[np.int64]:
    """Return the best classes by plain Pillow and PyTorch on the CPU, which are kept for other parts."""
    kept = ctx.folder / f"reference-{network}.json"
    known: dict[str, int] = json.loads(kept.read_text()) if kept.exists() else {}
    fresh = [path for path in paths if str(path) not in known]
    if fresh:
        module, preprocessing, _ = load_network(network, ctx.cifar().get(network))
        for at in range(0, len(fresh), BATCH):
            some = fresh[at : at + BATCH]
            pixels = np.stack([reference_pixels(path, preprocessing) for path in some])
            best = reference_logits(module, pixels, preprocessing).argmax(1).tolist()
            known |= dict(zip(map(str, some), best, strict=True))
        kept.write_text(json.dumps(known))
    return np.array([known[str(path)] for path in paths], np.int64)


def _right(network: str, paths: list[Path], served: list[int]) -> int | None:
    """Return how many answers are true; None if the files do not tell."""
    if network != EFFICIENTNET:
        names = sorted({path.parent.name for path in paths})
        return sum(names.index(path.parent.name) == best for path, best in zip(paths, served, strict=True))
    # One photo for every fourth class, in the order of the classes; a folder's first ones when there are fewer.
    if len(paths) != REAL_PHOTOS:
        return None
    return sum(best == 4 * at for at, best in enumerate(served))


def _all_there(ctx: Context) -> str:
    count = len(ctx.photos())
    if count != REAL_PHOTOS:
        raise RuntimeError(f"only {count} of {REAL_PHOTOS}")
    return f"{count}"


if __name__ == "__main__":
    sys.exit(main())
