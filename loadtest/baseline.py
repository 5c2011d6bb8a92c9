"""`python loadtest/baseline.py PHOTOS`: how fast this machine decodes and infers with no server around it.

Runs the server's own decoding and backend with the server's settings (`SERVER_...` in the environment), but without
HTTP, other processes or a queue. The gap between this and a running server is the cost of serving.
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtest import command
from loadtest.results import Baseline, Pace
from loadtest.turns import in_turns
from models import manifest
from models.manifest import Manifest
from server import repository
from server.cpus import available_cpus
from server.engine import backends
from server.engine.backends import Backend
from server.engine.scheduler import buckets
from server.errors import ServiceError
from server.images.decode import decode
from server.settings import Settings, WrongSettingsError
from server.settings import read as read_settings

ROUNDS = 5

Key = tuple[str, int]
Work = Callable[[], int]
"""Does one piece of work; returns how many images it covered."""


class _Sample(NamedTuple):
    images: int
    wall_s: float
    cpu_s: float


def main() -> int:
    """Measure and print; 0 is success."""
    options = _parse()
    settings = read_settings(())
    folder = options.repository or settings.repository
    catalogue = repository.scan(folder, settings.models)
    found = catalogue.members(catalogue.resolve(options.model or settings.default_model, None))[0].manifest
    content = manifest.read_model_file(folder / found.name / str(found.version), found)
    photos = [path.read_bytes() for path in options.photos]
    baseline = measure(found, backends.load(found, content, settings), photos, settings, options.seconds)
    print(baseline.model_dump_json() if options.json else _table(baseline))
    return 0


def measure(found: Manifest, backend: Backend, photos: Sequence[bytes], settings: Settings, seconds: float) -> Baseline:
    """Measure decoding, inference and single images, in about `seconds` altogether.

    Raises:
        ServiceError: a photo cannot be decoded.
    """

    def pixels_of(photo: bytes) -> NDArray[np.uint8]:
        pixels = np.empty(found.input_shape, np.uint8)
        decode(photo, found.preprocessing, [pixels], max_pixels=settings.max_pixels)
        return pixels

    def decode_some(threads: int) -> int:
        some = list(itertools.islice(endless, 4 * threads))
        return len(list(pool.map(pixels_of, some) if threads > 1 else map(pixels_of, some)))

    def infer(size: int) -> int:
        return len(backend.run(ready[:size]).indices)

    def alone() -> int:
        started_s = time.perf_counter()
        backend.run([pixels_of(next(endless))])
        lone_s.append(time.perf_counter() - started_s)
        return 1

    lone_s: list[float] = []
    threads = sorted({1, settings.decode_threads})
    sizes = buckets(settings.max_batch)
    endless = itertools.cycle(photos)
    ready = [pixels_of(next(endless)) for _ in range(settings.max_batch)]
    with ThreadPoolExecutor(settings.decode_threads) as pool:
        works = {("decode", count): partial(decode_some, count) for count in threads}
        works |= {("infer", size): partial(infer, size) for size in sizes}
        paces = _paces({**works, ("alone", 1): alone}, seconds)
    decoding = {count: paces["decode", count] for count in threads}
    inference = {size: paces["infer", size] for size in sizes}
    best_ms = min(pace.cpu_ms for pace in decoding.values()) + min(pace.cpu_ms for pace in inference.values())
    return Baseline(
        model=found.name,
        version=found.version,
        photos=len(photos),
        cpus=available_cpus(),
        inference_threads=settings.inference_threads,
        decode=decoding,
        inference=inference,
        images_per_s=available_cpus() * 1e3 / best_ms,
        lone_ms=1e3 * median(lone_s),
    )


def _paces(works: Mapping[Key, Work], seconds: float) -> dict[Key, Pace]:
    """The pace of each work, after doing each once to warm up."""
    for work in works.values():
        work()
    samples: dict[Key, list[_Sample]] = {key: [] for key in works}
    for _, key in in_turns(list(works), ROUNDS):
        samples[key].append(_sample(works[key], seconds / ROUNDS / len(works)))
    return {
        key: Pace(
            images_per_s=median(one.images / one.wall_s for one in several),
            cpu_ms=median(1e3 * one.cpu_s / one.images for one in several),
        )
        for key, several in samples.items()
    }


def _sample(work: Work, seconds: float) -> _Sample:
    images, started_s, cpu_s = 0, time.perf_counter(), time.process_time()
    while (wall_s := time.perf_counter() - started_s) < seconds or not images:
        images += work()
    return _Sample(images, wall_s, time.process_time() - cpu_s)


def _table(baseline: Baseline) -> str:
    rows = {f"decode and resize, {threads} thread(s)": pace for threads, pace in baseline.decode.items()}
    rows |= {f"inference, batch of {size}": pace for size, pace in baseline.inference.items()}
    rows["baseline of a server"] = Pace(images_per_s=baseline.images_per_s, cpu_ms=baseline.cpu_ms)
    return "\n".join(
        [
            f"{baseline.model} version {baseline.version}, {baseline.photos} photos, {baseline.cpus} CPUs, "
            f"{baseline.inference_threads} inference threads",
            f"{'':30}{'images/s':>10}{'CPU-ms an image':>18}",
            *(f"{name:30}{pace.images_per_s:10.1f}{pace.cpu_ms:18.2f}" for name, pace in rows.items()),
            f"one photo alone, decode and inference: {baseline.lone_ms:.1f} ms",
        ]
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="baseline.py", description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO", help="image files")
    parser.add_argument("--repository", type=Path, metavar="FOLDER", help="if not the server's")
    parser.add_argument("--model", metavar="NAME", help="if not the server's default")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="for all measurements (default 10)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main, ServiceError, WrongSettingsError))
