"""`python loadtest/engine.py`: how close the engine comes to this device's limits, with no server around it.

Runs every model of the repository on every backend that works here, with the server's settings (`SERVER_...` in the
environment), and compares it with a roofline that PyTorch measures on the same device: a batch takes at least the time
of its multiplications at the speed of a large matrix product, or of moving its bytes at the speed of a large copy,
whichever is longer. Pixels are prepared beforehand; only the backend's `run` is timed. Writes a table and all figures
to docs/measurements/engine-<device>.md and .json.
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import argparse
import itertools
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from loadtest import command, roofline, tables
from loadtest.command import numbers
from loadtest.results import Record, percentiles_ms
from loadtest.roofline import Roofline, Work
from models import manifest
from models.manifest import Manifest
from server import repository
from server.engine import backends
from server.engine.backends import ONNX_BACKENDS, Backend
from server.errors import DeviceLostError
from server.settings import Settings, WrongSettingsError
from server.settings import read as read_settings

CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
LEAST_RUNS = 5
"""Runs of each batch size, however long they take."""

Network = tuple[str, tuple[int, int], int]
"""Identifies a network in any precision and format: architecture, input height and width, number of classes."""


class Row(Record):
    """One model by one backend at one batch size."""

    model: str
    version: int
    backend: str
    precision: str
    """of the file; `tf32` if FP32 was computed as TF32"""
    on_gpu: bool
    batch: int
    images_per_s: float
    """of the median run"""
    p50_ms: float
    p99_ms: float
    runs: int
    bound_images_per_s: float | None
    """by the roofline; None if there is no ONNX file to count the work in, or no peak for the precision"""


class Result(Record):
    """All figures."""

    load_average: float
    """before the measurements"""
    measured: str
    roofline: Roofline
    work: dict[str, Work]
    """by network"""
    rows: list[Row]
    refused: dict[str, str]
    """why a combination of model and backend was not measured"""


def main() -> int:
    """Measure, print and write the table; 0 is success."""
    options = _parse()
    settings = read_settings([f"--max-batch={max(options.batches)}"])
    load_average = os.getloadavg()[0]
    everything = _manifests(options.repository, ())
    plain = [found for found in everything if (found.backend, found.precision) == ("onnx", "fp32")]
    work = {_network(found): roofline.count(_read(options.repository, found)) for found in plain}
    # In a separate process, so that PyTorch's memory on the device and its threads are gone afterwards.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        best = apart.submit(roofline.measure, options.seconds).result()
    rows: list[Row] = []
    refused: dict[str, str] = {}
    for found in _manifests(options.repository, options.models):
        content = _read(options.repository, found)
        for title, changed in variants(found, settings):
            try:
                backend = backends.load(found, content, changed)
            except DeviceLostError:
                raise
            except Exception as error:  # runtimes' errors have no common class
                refused[f"{found.name}, {title}"] = " ".join(str(error).split())[:300]
                continue
            if not changed.tf32 or backend.on_gpu:  # CPUs have no TF32
                precision = "tf32" if changed.tf32 else found.precision
                # a GPU's roofline says nothing about the CPU beside it
                known = work.get(_network(found)) if backend.on_gpu == best.on_gpu else None
                for batch in options.batches:
                    bound = known.bound(best, precision, batch, found.file.size_bytes) if known else None
                    rows.append(measure(found, backend, title, precision, batch, options.seconds, bound))
            backend.close()
    result = Result(
        load_average=load_average,
        measured=datetime.now(UTC).isoformat(timespec="minutes"),
        roofline=best,
        work={f"{name} at {side}": one for (name, side, _), one in work.items()},
        rows=rows,
        refused=refused,
    )
    text = table(result)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", best.device.lower()).strip("-")
    (options.output / f"engine-{slug}.md").write_text(text)
    (options.output / f"engine-{slug}.json").write_text(result.model_dump_json(indent=1) + "\n")
    return 0


def variants(found: Manifest, settings: Settings) -> Iterator[tuple[str, Settings]]:
    """The settings worth trying for a model, each with a title."""
    ways: list[tuple[str, dict[str, Any]]] = [(found.backend, {})]
    if found.backend in ONNX_BACKENDS:
        ways = [(name, {"backend": name}) for name in ONNX_BACKENDS]
        ways += [("onnx cuda", {"backend": "onnx", "providers": CUDA})]
        ways += [("onnx cuda graph", {"backend": "onnx", "providers": CUDA, "cuda_graph": True})]
    elif found.backend == "torch":
        ways += [("torch compiled", {"torch_compile": True})] if settings.torch_compile else []
        ways[0] = ("torch", {"torch_compile": False})
    for title, changes in ways:
        yield title, settings.model_copy(update=changes)
        if found.precision == "fp32" and (found.backend == "torch" or "providers" in changes):
            yield title, settings.model_copy(update=changes | {"tf32": True})


def measure(
    found: Manifest, backend: Backend, title: str, precision: str, batch: int, seconds: float, bound: float | None
) -> Row:
    """Run a batch for about `seconds`, after one run to warm up."""
    images = list(np.random.default_rng(0).integers(0, 256, (batch, *found.input_shape), np.uint8))
    backend.run(images)
    taken_s: list[float] = []
    while sum(taken_s) < seconds or len(taken_s) < LEAST_RUNS:
        started_s = time.perf_counter()
        backend.run(images)
        taken_s.append(time.perf_counter() - started_s)
    p50_ms, p99_ms = percentiles_ms(taken_s, 50, 99)
    row = Row(
        model=found.name,
        version=found.version,
        backend=title,
        precision=precision,
        on_gpu=backend.on_gpu,
        batch=batch,
        images_per_s=1e3 * batch / p50_ms,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        runs=len(taken_s),
        bound_images_per_s=bound,
    )
    print(f"{row.model} {title} {precision} batch {batch}: {row.images_per_s:.1f} images/s", file=sys.stderr)
    return row


def table(result: Result) -> str:
    """All figures as Markdown."""
    best = result.roofline
    peaks = ", ".join(f"{name.upper()} {value:.3g} TFLOP/s" for name, value in best.tera_flops.items())
    work = [
        f"- {name}: {one.giga_flops:.2f} GFLOP and {one.million_activations:.2f} million activations an image"
        for name, one in result.work.items()
    ]
    columns: tables.Columns[Row] = {
        "model": lambda row: row.model,
        "backend": lambda row: row.backend,
        "precision": lambda row: row.precision,
        "batch": lambda row: str(row.batch),
        "images/s": lambda row: f"{row.images_per_s:.1f}",
        "p50 ms": lambda row: f"{row.p50_ms:.2f}",
        "p99 ms": lambda row: f"{row.p99_ms:.2f}",
        "bound images/s": lambda row: tables.decimal(row.bound_images_per_s, 0),
        "of bound": lambda row: tables.percent(row.bound_images_per_s and row.images_per_s / row.bound_images_per_s),
    }
    refused = [f"- {name}: {reason}" for name, reason in result.refused.items()]
    parts = [
        f"# The engine on {best.device}",
        "    python loadtest/engine.py",
        f"Measured {result.measured}, torch {best.torch}; load average before: {result.load_average:.1f}"
        f" on {os.cpu_count()} CPUs. Matrix product {peaks}; copy"
        f" {best.copy_gb_per_s:.0f} GB/s. The bound is the roofline of the network's convolutions and matrix"
        " products; `-` where there is no ONNX file to count them in, or no peak for the precision.",
        *(["\n".join(work)] if work else []),
        tables.markdown(columns, result.rows, texts=3),
        *(["Not measured, and why:", "\n".join(refused)] if refused else []),
    ]
    return "\n\n".join(parts) + "\n"


def _network(found: Manifest) -> Network:
    return found.architecture, found.preprocessing.crop, found.num_classes


def _manifests(root: Path, names: Sequence[str]) -> list[Manifest]:
    return [model.manifest for model in repository.scan(root, tuple(names)).models.values()]


def _read(root: Path, found: Manifest) -> bytes:
    return manifest.read_model_file(root / found.name / str(found.version), found)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="engine.py", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="FOLDER")
    parser.add_argument("--models", type=lambda text: text.split(","), default=[], metavar="NAME,…", help="if not all")
    powers = list(itertools.accumulate([2] * 8, int.__mul__, initial=1))
    parser.add_argument("--batches", type=numbers(int), default=powers, metavar="N,N,…", help="default 1,2,4,…,256")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="for each figure (default 2)")
    parser.add_argument("--output", type=Path, default=Path("docs/measurements"), metavar="FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main, DeviceLostError, WrongSettingsError))
