"""`python loadtest/engine_loop.py`: what an image costs the engine process beside the backend's own run.

Runs the server's own engine process with a backend that only sleeps, as long as a GPU would compute, and the HTTP
workers' end of the connection to it. Images come one by one, as from decoders; twice as many are under way as a batch
holds, so that every batch can be full. Measures the CPU time of the engine process, all its threads together. A model
of the repository determines how large images and answers are; its file is not loaded.
"""

import models.missing  # noqa: F401 before what may be missing

# isort: split

import argparse
import asyncio
import math
import multiprocessing
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import psutil

from loadtest import command, tables
from loadtest.command import numbers
from loadtest.machine import read_meters
from loadtest.pretended import Pretended
from models.manifest import Manifest
from server import metrics, repository
from server.control import EngineReady
from server.engine import backends, process
from server.engine.decoding import Decoders
from server.engine.remote import RemoteEngine
from server.errors import ServiceError
from server.placement import Place
from server.repository import Model
from server.settings import Settings, WrongSettingsError
from server.settings import read as read_settings
from server.slots import Slots

WARM_UP_S = 0.5
TOP_K = 5
DECODE_THREADS = 2
"""Of each worker. They only sleep, too."""
DECODED_EARLIER = 2
"""How many times faster than the backend all decoders together are."""


class Row(NamedTuple):
    """What was measured at one size."""

    max_batch: int
    images_per_s: float
    batch: float
    """images in the batch of the mean image"""
    cpu_ms: float
    """an image"""


def main() -> int:
    """Measure and print; 0 is success."""
    options = _parse()
    catalogue = repository.scan(options.repository)
    model = catalogue.members(catalogue.resolve(options.model, None))[0]
    columns: tables.Columns[Row] = {
        "max_batch": lambda row: str(row.max_batch),
        "batch": lambda row: f"{row.batch:.1f}",
        "images/s": lambda row: f"{row.images_per_s:.0f}",
        "CPU-ms an image": lambda row: f"{row.cpu_ms:.3f}",
    }
    print(f"{model.key}, {options.workers} HTTP workers; the backend could do {options.images_per_s:g} images/s")
    print(tables.line(columns, None))
    for size in options.batches:
        row = measure(options.repository, model, size, options.workers, options.images_per_s, options.seconds)
        print(tables.line(columns, row))
    return 0


def measure(folder: Path, model: Model, max_batch: int, workers: int, per_s: float, seconds: float) -> Row:
    """Run an engine process for about `seconds` after it has warmed up; its backend does `per_s` in full batches."""
    flags = {"max-batch": max_batch, "http-workers": workers, "queue-size": 2 * max_batch * workers}
    settings = read_settings([f"--{name}={value}" for name, value in flags.items()])
    slots = Slots(settings.queue_size, math.prod(model.manifest.input_shape))
    with ExitStack() as held:
        directory = Path(held.enter_context(TemporaryDirectory()))
        metrics.use_directory(directory, ["engine"])
        address = str(directory / "engine")
        context = multiprocessing.get_context("spawn")
        control, theirs = context.Pipe()
        arguments = per_s, settings, folder, [model], slots, address, theirs
        engine = context.Process(target=_serve, args=arguments, daemon=True)
        engine.start()
        held.callback(engine.join)
        held.callback(control.close)
        theirs.close()
        while not isinstance(control.recv(), EngineReady):
            pass
        decode_s = workers * DECODE_THREADS / per_s / DECODED_EARLIER
        return asyncio.run(_load(engine.pid or 0, address, model, slots, settings, decode_s, seconds))


def _serve(per_s: float, *arguments: Any) -> None:
    """The engine process."""

    def load(manifest: Manifest, _: bytes, settings: Settings) -> Pretended:
        # Half of a full batch's time is the batch's own, as on a GPU: otherwise no size would be cheaper per image, and
        # the scheduler would choose one by chance.
        image_s = 1 / (2 * per_s)
        return Pretended(manifest, settings.max_batch, settings.max_batch * image_s, image_s)

    with mock.patch.object(backends, "load", load):
        process.main(Place("engine"), *arguments)


async def _load(
    pid: int, address: str, model: Model, slots: Slots, settings: Settings, decode_s: float, seconds: float
) -> Row:
    """Keep as many images under way as two batches hold, shared by the workers."""
    each = settings.slots_per_worker
    sizes: list[int] = []
    ending = asyncio.Event()

    async def ask(worker: RemoteEngine) -> None:
        while not ending.is_set():
            (classes,) = await worker.classify(b"", model, TOP_K, time.monotonic() + 60)
            sizes.append(classes.batch_size)

    def decode(*_: object) -> tuple[int, int]:
        time.sleep(decode_s)
        return 0, 0

    decoders = [Decoders(decode, DECODE_THREADS) for _ in range(settings.http_workers)]
    workers = [
        RemoteEngine(slots, range(first * each, (first + 1) * each), pool, lambda _: None)
        for first, pool in enumerate(decoders)
    ]
    for worker in workers:
        worker.engine_up(0, address, {model.id})
    under_way = 2 * settings.max_batch
    asking = asyncio.gather(*(ask(workers[index % len(workers)]) for index in range(under_way)))
    await asyncio.sleep(WARM_UP_S)
    engine = psutil.Process(pid)
    sizes.clear()
    before, started_s = read_meters([engine]), time.perf_counter()
    await asyncio.sleep(seconds)
    taken, took_s, answered = read_meters([engine]).since(before), time.perf_counter() - started_s, sizes.copy()
    ending.set()
    await asking
    for worker, pool in zip(workers, decoders, strict=True):
        worker.close()
        pool.close(wait=True)
    return Row(settings.max_batch, len(answered) / took_s, fmean(answered), 1e3 * (taken.server or 0) / len(answered))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="engine_loop.py", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="FOLDER")
    parser.add_argument("--model", metavar="NAME", help="if not the server's default")
    parser.add_argument("--batches", type=numbers(int), default=[1, 8, 32, 64], metavar="N,N,…")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="HTTP workers (default 2)")
    text = "capacity of the backend (default 1000)"
    parser.add_argument("--images-per-s", type=float, default=1000, metavar="N", help=text)
    parser.add_argument("--seconds", type=float, default=3, metavar="S", help="for each figure (default 3)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main, ServiceError, WrongSettingsError))
