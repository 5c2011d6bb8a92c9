"""The state of the GPUs, from NVIDIA's management library: for metrics, and for `python -m server doctor`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

from server.metrics import Metrics

EVERY_S = 5.0
"""Interval between updates of the metrics: short enough for a scrape every 15 s."""


class GpuState(NamedTuple):
    """The current state of one GPU."""

    number: int
    name: str
    driver: str
    utilisation: float
    """Share of the last second in which the GPU was busy, from 0 to 1."""
    used_bytes: int
    total_bytes: int
    compute_capability: str


@contextmanager
def management() -> Iterator[Any]:
    """Initialise the library until the block ends; None if it or the driver is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        yield None
        return
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def look(library: Any) -> list[GpuState]:
    """Read the state of all GPUs that respond."""
    found = []
    for index in range(library.nvmlDeviceGetCount()):
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
            memory = library.nvmlDeviceGetMemoryInfo(handle)
            capability = library.nvmlDeviceGetCudaComputeCapability(handle)
            found.append(
                GpuState(
                    index,
                    library.nvmlDeviceGetName(handle),
                    library.nvmlSystemGetDriverVersion(),
                    library.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
                    memory.used,
                    memory.total,
                    ".".join(map(str, capability)),
                )
            )
        except library.NVMLError:  # lost, or split into MIG instances, which report no utilisation
            continue
    return found


def visible(library: Any, variable: str | None) -> tuple[str, ...]:
    """The GPUs, or MIG slices, that CUDA would use, each as CUDA_VISIBLE_DEVICES names it.

    Args:
        library: from `management`.
        variable: the value of CUDA_VISIBLE_DEVICES; like CUDA, this ignores an empty entry or -1, and all after it.
            None: it is not set, and every GPU that the library reports is visible.
    """
    if variable is not None:
        names = [name.strip() for name in variable.split(",")]
        return tuple(takewhile(lambda name: name not in ("", "-1"), names))
    if library is None:
        return ()
    found: list[str] = []
    for index in range(library.nvmlDeviceGetCount()):
        try:
            found += _ids(library, library.nvmlDeviceGetHandleByIndex(index))
        except library.NVMLError:  # lost
            continue
    return tuple(found)


def _ids(library: Any, gpu: Any) -> list[str]:
    """The GPU's id, or those of its MIG slices."""
    try:
        divided, _ = library.nvmlDeviceGetMigMode(gpu)
    except library.NVMLError:  # a GPU without MIG
        divided = 0
    if not divided:
        return [library.nvmlDeviceGetUUID(gpu)]
    slices = []
    for index in range(library.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            slices.append(library.nvmlDeviceGetUUID(library.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)))
        except library.NVMLError:  # there are fewer
            continue
    return slices


def watch(metrics: Metrics, stop: threading.Event) -> threading.Thread:
    """Start a thread that keeps the GPUs' metrics up to date; without a GPU it ends at once.

    It is a thread because a driver in trouble may block for long.
    """

    def keep() -> None:
        with management() as library:
            while library is not None:
                for gpu in look(library):
                    show(metrics, gpu)
                if stop.wait(EVERY_S):
                    return

    thread = threading.Thread(target=keep, name="gpus", daemon=True)
    thread.start()
    return thread


def show(metrics: Metrics, gpu: GpuState) -> None:
    """Put one GPU's state into the metrics."""
    metrics.gpu_utilisation.labels(str(gpu.number), gpu.name).set(gpu.utilisation)
    metrics.gpu_used.labels(str(gpu.number), gpu.name).set(gpu.used_bytes)
    metrics.gpu_total.labels(str(gpu.number), gpu.name).set(gpu.total_bytes)
