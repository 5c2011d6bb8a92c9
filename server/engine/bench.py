"""`python -m server.engine.bench`: images per second of every model, by whatever can run it here, with no server.

Pixels lie ready; what is timed is the `run` of a backend, with the server's own settings (`SERVER_...` in the
environment). `loadtest/engine.py` puts the figures beside what the device could do.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models import manifest
from models.manifest import Manifest, ManifestError
from server import repository
from server.engine import backends
from server.engine.backends import ONNX_BACKENDS, Backend, DeviceLostError
from server.settings import Settings

CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
LEAST_RUNS = 5
"""Of each batch size, however long they take."""


@dataclass(frozen=True, slots=True)
class Row:
    """One model by one backend at one batch size."""

    model: str
    version: int
    backend: str
    precision: str
    """of the file; `tf32` where FP32 was computed so"""
    on_gpu: bool
    batch: int
    images_per_s: float
    """of the median run"""
    p50_ms: float
    p99_ms: float
    runs: int


def main() -> int:
    """Measure and print; 0 is success, 1 an error that was reported in one line."""
    options = _parse()
    settings = Settings(max_batch=max(options.batches))
    rows: list[Row] = []
    refused: dict[str, str] = {}
    try:
        catalogue = repository.scan(options.repository, tuple(options.models))
        for model in catalogue.models.values():
            found = model.manifest
            content = manifest.read_model_file(options.repository / found.name / str(found.version), found)
            for title, changed in variants(found, settings):
                try:
                    backend = backends.load(found, content, changed)
                except DeviceLostError:
                    raise
                except Exception as error:  # runtimes' errors have no common class
                    refused[f"{found.name}, {title}"] = " ".join(str(error).split())[:300]
                    continue
                precision = "tf32" if changed.tf32 and backend.on_gpu else found.precision
                if not changed.tf32 or backend.on_gpu:  # on a CPU there is no other way to compute FP32
                    rows += measure(found, backend, title, precision, options.batches, options.seconds)
                backend.close()
    except (ManifestError, OSError, DeviceLostError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"rows": [asdict(row) for row in rows], "refused": refused}))
    return 0


def variants(found: Manifest, settings: Settings) -> Iterator[tuple[str, Settings]]:
    """The ways to run a model that are worth a try here, and what to call each."""
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
    found: Manifest, backend: Backend, title: str, precision: str, batches: Sequence[int], seconds: float
) -> list[Row]:
    """Run each batch size for about `seconds`, after one run to warm up."""
    random = np.random.default_rng(0)
    images = list(random.integers(0, 256, (max(batches), *found.input_shape), np.uint8))
    rows = []
    for batch in batches:
        backend.run(images[:batch])
        taken_s: list[float] = []
        while sum(taken_s) < seconds or len(taken_s) < LEAST_RUNS:
            started_s = time.perf_counter()
            backend.run(images[:batch])
            taken_s.append(time.perf_counter() - started_s)
        p50_s, p99_s = np.percentile(taken_s, (50, 99)).tolist()
        row = Row(
            model=found.name,
            version=found.version,
            backend=title,
            precision=precision,
            on_gpu=backend.on_gpu,
            batch=batch,
            images_per_s=batch / p50_s,
            p50_ms=1e3 * p50_s,
            p99_ms=1e3 * p99_s,
            runs=len(taken_s),
        )
        print(f"{row.model} {title} {precision} batch {batch}: {row.images_per_s:.1f} images/s", file=sys.stderr)
        rows.append(row)
    return rows


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server.engine.bench", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="FOLDER")
    parser.add_argument("--models", type=lambda text: text.split(","), default=[], metavar="NAME,…", help="if not all")
    powers = list(itertools.accumulate([2] * 8, int.__mul__, initial=1))
    parser.add_argument("--batches", type=_numbers, default=powers, metavar="N,N,…", help="default 1,2,4,…,256")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="for each figure (default 2)")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
