"""How busy each process was while a server was measured, and so what bounds the server."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import psutil

from docs.measurements.gpu.load import Measured, Senders
from docs.measurements.gpu.part import Context
from docs.measurements.gpu.serving import Server
from loadtest.loops import Photo
from server import gpus

BUSY = 0.9
"""A resource that is busy for this share of the time is what bounds the service."""
GPU_EVERY_S = 0.1

Reading = tuple[float, dict[str, float], float]
"""The moment; CPU-seconds of the server's processes, by role; CPU-seconds of all processes of the machine."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one window of time took."""

    cpus: int
    cpu_s: Mapping[str, float]
    """by role: supervisor, engine, http, and sender"""
    machine_busy: float
    """share of all CPUs, by whatever processes"""
    gpu_busy: float | None
    """share of the window in which anything ran on the GPU; None where there is none"""
    senders: int
    http_workers: int
    engines: int
    seconds: float


def bound_by(use: Use) -> str:
    """Say what would have to be cheaper for more images a second.

    Python runs one thread of a process at a time: an engine and a sender reach their limit with one CPU, while the HTTP
    workers decode beside that. An engine without a GPU computes with many CPUs, and is no limit before these are.
    """
    if use.gpu_busy is not None and use.gpu_busy >= BUSY:
        return "the GPU"
    if use.cpu_s.get("sender", 0.0) >= BUSY * use.senders * use.seconds:
        return "the load generator's processes"
    if use.machine_busy >= BUSY:
        most = max(use.cpu_s, key=lambda role: use.cpu_s[role])
        return f"the CPUs, most of them for {most}"
    if use.gpu_busy is not None and use.cpu_s.get("engine", 0.0) >= BUSY * use.engines * use.seconds:
        return "the engine process"
    if use.cpu_s.get("http", 0.0) >= BUSY * use.http_workers * use.seconds:
        return "the HTTP workers' interpreters"
    return "nothing that is busy: waiting for each other"


def measure(
    ctx: Context,
    server: Server,
    senders: Senders,
    photos: list[Photo],
    connections: int,
    *,
    on_gpu: bool,
    **known: Any,
) -> str:
    """Measure with so many connections, and put a row into the table `steps`; returns a summary of it.

    `on_gpu`: whether the server may use the GPU; otherwise nobody looks how busy that is.

    Raises:
        RuntimeError: a request failed.
    """
    sizes = ctx.sizes
    readings: list[Reading] = []
    busy: list[float] = []

    def meanwhile(begin_s: float) -> None:
        time.sleep(max(0.0, begin_s - time.monotonic()))
        readings.append(_read(server))
        with gpus.management() if on_gpu else nullcontext() as library:
            while time.monotonic() < begin_s + sizes.seconds:
                busy.extend(gpu.utilisation for gpu in (gpus.look(library) if library is not None else []))
                time.sleep(GPU_EVERY_S)
        readings.append(_read(server))

    done = senders.measure(server.url, photos, connections, sizes.warm_up_s, sizes.seconds, meanwhile)
    use = _use(readings, busy, done, senders, known["http_workers"], known.get("engines", 1))
    # Untrained networks rank classes nearly alike for all photos, and batches of other sizes round differently.
    flips = sum(count for fault, count in done.faults.items() if fault.startswith("class "))
    row = {
        **known,
        "connections": connections,
        "images_per_s": round(done.images_per_s, 1),
        "p50_ms": round(done.p50_ms, 2),
        "p99_ms": round(done.p99_ms, 2),
        "mean_batch": round(done.mean_batch, 1),
        "cpu_ms": {role: round(1e3 * taken / use.seconds / done.images_per_s, 3) for role, taken in use.cpu_s.items()},
        "machine_busy": round(use.machine_busy, 3),
        "sender_share": round(use.cpu_s["sender"] / use.seconds / use.cpus, 3),
        "gpu_busy": None if use.gpu_busy is None else round(use.gpu_busy, 3),
        "bound_by": bound_by(use),
        "flips": flips,
        "faults": dict(done.faults.most_common(3)),
    }
    ctx.result.add("steps", row)
    if failed := done.faults.total() - flips:
        raise RuntimeError(f"{failed} requests failed: {done.faults.most_common(3)}")
    return f"{done.images_per_s:.0f} images/s, p99 {done.p99_ms:.1f} ms, bound by {row['bound_by']}"


def _read(server: Server) -> Reading:
    machine = psutil.cpu_times()
    return time.monotonic(), server.cpu_s(), sum(machine) - machine.idle - machine.iowait


def _use(
    readings: list[Reading], busy: list[float], done: Measured, senders: Senders, workers: int, engines: int
) -> Use:
    (began_s, before, taken_before), (ended_s, after, taken_after) = readings
    seconds, cpus = ended_s - began_s, psutil.cpu_count() or 1
    return Use(
        cpus=cpus,
        cpu_s={**{role: after[role] - before.get(role, 0.0) for role in after}, "sender": done.cpu_s},
        machine_busy=(taken_after - taken_before) / seconds / cpus,
        gpu_busy=sum(busy) / len(busy) if busy else None,
        senders=senders.count,
        http_workers=workers,
        engines=engines,
        seconds=seconds,
    )
