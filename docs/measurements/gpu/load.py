"""The load generator: as many processes as it takes, since one would be what bounds a fast server."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

import numpy as np
import psutil
import uvloop

from loadtest.loops import Photo, Target, ask_alone, closed_loop

START_S = 1.0
"""What the processes are given to come, before the warm-up begins."""


class Sent(NamedTuple):
    """What one process sent in the window that all share."""

    latencies_s: list[float]
    batch_sizes: list[int]
    faults: Counter[str]
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What all of them sent together."""

    images_per_s: float
    p50_ms: float
    p99_ms: float
    mean_batch: float
    """of the batches, not of the images"""
    images: int
    faults: Counter[str]
    cpu_s: float
    """of the load generator"""


class Senders:
    """Processes that send photos; they are started once."""

    def __init__(self, count: int) -> None:
        self.count = count
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, spawn, _remember, (spawn.Barrier(count),))
        list(self._pool.map(_come, range(count)))

    def close(self) -> None:
        """End them."""
        self._pool.shutdown()

    def measure(
        self, url: str, photos: Sequence[Photo], connections: int, warm_up_s: float, seconds: float,
        meanwhile: Callable[[float], None] = lambda _: None,
    ) -> Measured:  # fmt: skip
        """Send from that many connections in all; `meanwhile` is called with the moment at which the window begins."""
        shares = [connections // self.count + (at < connections % self.count) for at in range(self.count)]
        begin_s = time.monotonic() + START_S + warm_up_s
        # Each begins elsewhere, so that not all send the same photo at the same time.
        offsets = [at * len(photos) // self.count for at in range(self.count)]
        tasks = [
            self._pool.submit(_send, url, [*photos[at:], *photos[:at]], share, begin_s, seconds)
            for share, at in zip(shares, offsets, strict=True)
            if share
        ]
        meanwhile(begin_s)
        sent = [task.result() for task in tasks]
        latencies = np.concatenate([one.latencies_s for one in sent])
        sizes = np.concatenate([one.batch_sizes for one in sent])
        faults: Counter[str] = sum((one.faults for one in sent), Counter())
        if not len(latencies):
            raise RuntimeError(f"no answers: {faults.most_common(3)}")
        p50_s, p99_s = np.percentile(latencies, (50, 99)).tolist()
        return Measured(
            images_per_s=len(latencies) / seconds,
            p50_ms=1e3 * p50_s,
            p99_ms=1e3 * p99_s,
            mean_batch=float(len(sizes) / (1 / sizes).sum()),  # a batch of n is reported n times
            images=len(latencies),
            faults=faults,
            cpu_s=sum(one.cpu_s for one in sent),
        )


def prepared(url: str, images: Sequence[bytes]) -> list[Photo]:
    """Each photo as a request, and what it is found to show when it is sent alone."""
    return uvloop.run(ask_alone(Target(url), images))[1]


def _send(url: str, photos: list[Photo], connections: int, begin_s: float, seconds: float) -> Sent:
    process = psutil.Process()

    def cpu_s() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    warm_up_s = max(0.0, begin_s - time.monotonic())
    window = uvloop.run(closed_loop(Target(url), photos, connections, warm_up_s, seconds, cpu_s))
    return Sent(window.latencies_s, window.batch_sizes, window.faults, window.after - window.before)


_all_here: list[Barrier] = []


def _remember(barrier: Barrier) -> None:
    _all_here.append(barrier)


def _come(_: int) -> None:
    """Wait for the others: a pool starts a process only where none is idle."""
    _all_here[0].wait()
