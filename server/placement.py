"""Assigns a GPU, or a share of the CPUs, to each engine process; pure computation."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from server.settings import Settings

MANY_CPUS = 16
"""With fewer CPUs, one engine is faster than several, as an engine cannot use CPUs that another leaves idle."""


class Machine(NamedTuple):
    """The CPUs and GPUs that this process may use."""

    nodes: tuple[tuple[int, ...], ...]
    """CPUs by NUMA node, those of one core side by side; empty if processes cannot be pinned to CPUs."""
    cpus: int
    """Number of CPUs granted."""
    gpus: tuple[str, ...]
    """GPUs, or MIG slices, by their names in CUDA_VISIBLE_DEVICES."""


class Place(NamedTuple):
    """The GPU or CPUs that one engine process owns."""

    name: str
    """Name of the process."""
    gpu: str | None = None
    """Its name in CUDA_VISIBLE_DEVICES; None: no particular GPU."""
    cpus: tuple[int, ...] = ()
    """CPUs that it may run on; empty: any."""
    threads: int | None = None
    """Threads of one inference on the CPU; None: as in the settings."""
    on_gpu: bool = False
    """Whether its models run on a GPU, even if that has no name here."""

    @property
    def device(self) -> str:
        """For people and metrics: "all", "cpus 0-3", or what CUDA calls it."""
        if self.gpu is not None:
            return self.gpu
        return f"cpus {_ranges(self.cpus)}" if self.cpus else "all"

    def settings(self, settings: Settings) -> Settings:
        """The settings for this place, whose threads count unless `inference_threads` was set."""
        if self.threads is None or "inference_threads" in settings.model_fields_set:
            return settings
        return settings.model_copy(update={"inference_threads": self.threads})

    def __str__(self) -> str:
        return f"{self.name} ({self.device})"


def place(engines: int | None, machine: Machine, *, on_gpus: bool) -> tuple[Place, ...]:
    """Place the engines. By default, one engine per GPU; on the CPU one, or with many CPUs one per NUMA node.

    A single engine owns everything, unless there are several GPUs. With more engines than GPUs, engines share them in
    rotation. CPU shares are as equal as possible and never straddle nodes; fewer engines than nodes get whole nodes.
    """
    gpus = machine.gpus if on_gpus else ()
    count = engines or len(gpus) or (len(machine.nodes) or 1 if machine.cpus >= MANY_CPUS and not on_gpus else 1)
    names = ["engine"] if count == 1 else [f"engine-{number}" for number in range(count)]
    if len(gpus) > 1 or (gpus and count > 1):
        return tuple(Place(name, gpus[number % len(gpus)], on_gpu=True) for number, name in enumerate(names))
    if count == 1 or on_gpus:
        return tuple(Place(name, on_gpu=on_gpus) for name in names)
    threads = max(1, machine.cpus // count)
    if count > sum(map(len, machine.nodes)):
        return tuple(Place(name, threads=threads) for name in names)
    shares = _shares(machine.nodes, count)
    return tuple(
        Place(name, cpus=share, threads=min(threads, len(share))) for name, share in zip(names, shares, strict=True)
    )


def _shares(nodes: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    if count <= len(nodes):
        return [sum((nodes[at] for at in range(first, end)), ()) for first, end in _parts(len(nodes), count)]
    # Each further engine goes to the node where shares would remain largest.
    engines = [1] * len(nodes)
    for _ in range(count - len(nodes)):
        at = max(range(len(nodes)), key=lambda at: len(nodes[at]) / (engines[at] + 1))
        engines[at] += 1
    return [
        node[first:end] for node, parts in zip(nodes, engines, strict=True) for first, end in _parts(len(node), parts)
    ]


def _parts(length: int, count: int) -> Iterable[tuple[int, int]]:
    """Start and end of `count` parts of a sequence, whose sizes differ by one at most."""
    return pairwise(math.ceil(length * part / count) for part in range(count + 1))


def _ranges(numbers: Iterable[int]) -> str:
    """ "0-3,8" of 0, 1, 2, 3 and 8."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
