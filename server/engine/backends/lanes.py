"""How many batches a CPU gains by running at one time: measured when a model is loaded.

A small network leaves CPUs idle between its operators, which a second batch uses; two batches of a large one drive each
other out of the caches (docs/measurements/alternatives.md).
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.engine.backends import Outputs

Run = Callable[..., Outputs]
"""Runs one batch, as `Backend.run`; may be called by several threads at one time."""

MOST = 8
LEAST_GAIN = 1.05
"""Times as many images a second, so that it is worth a second copy of the weights."""
_ROUNDS = 5
"""In each of them everything has its turn, so that a machine that slows down slows all alike."""


class Lanes(NamedTuple):
    """What to run batches with while several run, and how many these are."""

    instances: int
    run: Run


def choose(
    alone: Run, open_with: Callable[[int], Run], threads: int, batches: Sequence[Sequence[NDArray[np.uint8]]]
) -> Lanes | None:
    """Find out whether several batches at one time, which share the threads, are faster than one after the other.

    Args:
        alone: runs a batch with all threads.
        open_with: the same with so many threads.
        threads: all there are.
        batches: of the sizes that are tried; each way counts with the one that suits it best.

    Returns:
        The fastest; None where one batch at a time is about as fast.
    """
    counts = [count for count in (2, 4, 8) if count <= min(threads, MOST)]
    several = [Lanes(count, open_with(threads // count)) for count in counts]
    ways = [Lanes(1, alone), *several]
    with ThreadPoolExecutor(MOST) as pool:
        for way in ways:
            _pace(way, batches, pool)  # the first time allocates
        rounds = [[_pace(way, batches, pool) for way in ways] for _ in range(_ROUNDS)]
    gains = {at: median(paces[at] / paces[0] for paces in rounds) for at in range(1, len(ways))}
    best = max(gains, key=lambda at: gains[at], default=0)
    return ways[best] if best and gains[best] >= LEAST_GAIN else None


def _pace(way: Lanes, batches: Sequence[Sequence[NDArray[np.uint8]]], pool: ThreadPoolExecutor) -> float:
    """Images per second, with the size of batch that suits it best."""
    return max(_pace_of(way, batch, pool) for batch in batches)


def _pace_of(way: Lanes, batch: Sequence[NDArray[np.uint8]], pool: ThreadPoolExecutor) -> float:
    started_s = time.perf_counter()
    for running in [pool.submit(way.run, batch) for _ in range(way.instances)]:
        running.result()
    return way.instances * len(batch) / (time.perf_counter() - started_s)


class Underway:
    """Tells each batch whether it is the only one: a lone one gets all threads, those of a busy server share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches = 0

    def __enter__(self) -> bool:
        with self._lock:
            self._batches += 1
            return self._batches == 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._batches -= 1
