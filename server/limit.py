"""`python -m server.limit PHOTOS`: what this machine can do with no server around it.

The server's own decoding and backend with its own settings (`SERVER_...` in the environment), but no HTTP, no other
process and no queue: what a server lacks of this is what it costs.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import manifest
from models.manifest import Manifest, ManifestError
from server import repository
from server.cpus import available_cpus
from server.engine import backends
from server.engine.backends import Backend
from server.engine.scheduler import buckets
from server.errors import ServiceError
from server.images.decode import decode
from server.settings import Settings

ROUNDS = 5
"""The measurements take turns, so that a machine that slows down slows all of them."""

Key = tuple[str, int]
Work = Callable[[], int]
"""Does something once; returns for how many images."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Medians over the rounds."""

    images_per_s: float
    cpu_ms: float
    """of all threads, for one image"""


@dataclass(frozen=True, slots=True)
class Limit:
    """What was measured, and what follows from it."""

    model: str
    version: int
    photos: int
    cpus: int
    inference_threads: int
    decode: dict[int, Pace]
    """by threads"""
    inference: dict[int, Pace]
    """by images in a batch, pixels ready"""
    images_per_s: float
    """CPUs over CPU-seconds of decoding and inference, each at its best"""
    lone_ms: float
    """decode and infer one image, wall time, median over the photos"""


class _Sample(NamedTuple):
    images: int
    wall_s: float
    cpu_s: float


def main() -> int:
    """Measure and print; 0 is success, 1 an error that was reported in one line."""
    options = _parse()
    settings = Settings()
    try:
        folder = options.repository or settings.repository
        catalogue = repository.scan(folder, settings.models)
        found = catalogue.members(catalogue.resolve(options.model or settings.default_model, None))[0].manifest
        content = manifest.read_model_file(folder / found.name / str(found.version), found)
        photos = [path.read_bytes() for path in options.photos]
        limit = measure(found, backends.load(found, content, settings), photos, settings, options.seconds)
    except (ManifestError, ServiceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(limit)) if options.json else _table(limit))
    return 0


def measure(found: Manifest, backend: Backend, photos: Sequence[bytes], settings: Settings, seconds: float) -> Limit:
    """Take about `seconds` for all measurements together.

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
        paces = _interleaved({**works, ("alone", 1): alone}, seconds)
    decoding = {count: paces["decode", count] for count in threads}
    inference = {size: paces["infer", size] for size in sizes}
    best_ms = min(pace.cpu_ms for pace in decoding.values()) + min(pace.cpu_ms for pace in inference.values())
    return Limit(
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


def _interleaved(works: Mapping[Key, Work], seconds: float) -> dict[Key, Pace]:
    """The pace of each work, after doing each once to warm up."""
    for work in works.values():
        work()
    slice_s = seconds / ROUNDS / len(works)
    rounds = [{key: _sample(work, slice_s) for key, work in works.items()} for _ in range(ROUNDS)]
    return {
        key: Pace(
            median(samples[key].images / samples[key].wall_s for samples in rounds),
            median(1e3 * samples[key].cpu_s / samples[key].images for samples in rounds),
        )
        for key in works
    }


def _sample(work: Work, seconds: float) -> _Sample:
    images, started_s, cpu_s = 0, time.perf_counter(), time.process_time()
    while (wall_s := time.perf_counter() - started_s) < seconds:
        images += work()
    return _Sample(images, wall_s, time.process_time() - cpu_s)


def _table(limit: Limit) -> str:
    rows = {f"decode and resize, {threads} thread(s)": pace for threads, pace in limit.decode.items()}
    rows |= {f"inference, batch of {size}": pace for size, pace in limit.inference.items()}
    return "\n".join(
        [
            f"{limit.model} version {limit.version}, {limit.photos} photos, {limit.cpus} CPUs, "
            f"{limit.inference_threads} inference threads",
            f"{'':30}{'images/s':>10}{'CPU-ms an image':>18}",
            *(f"{name:30}{pace.images_per_s:10.1f}{pace.cpu_ms:18.2f}" for name, pace in rows.items()),
            f"{'limit of a server':30}{limit.images_per_s:10.1f}{1e3 * limit.cpus / limit.images_per_s:18.2f}",
            f"one photo alone, decode and inference: {limit.lone_ms:.1f} ms",
        ]
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server.limit", description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO", help="image files")
    parser.add_argument("--repository", type=Path, metavar="FOLDER", help="if not the server's")
    parser.add_argument("--model", metavar="NAME", help="if not the server's default")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="for all measurements (default 10)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
