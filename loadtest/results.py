"""The measurements that commands pass to each other, in files and between processes."""

from collections.abc import Sequence
from pathlib import Path
from statistics import harmonic_mean
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from loadtest.command import LoadTestError

if TYPE_CHECKING:
    from loadtest.loops import Window
    from loadtest.machine import Meters


MOST_FAULTS = 10
"""How many distinct faults are kept: each request may have its own."""

Kind = TypeVar("Kind")
Measured = TypeVar("Measured", bound="Record")


class Record(BaseModel):
    """Something that was measured."""

    model_config = ConfigDict(frozen=True)

    def append(self, path: Path) -> None:
        """Add a line of JSON to a file, so that an interrupted run can be resumed."""
        with path.open("a") as file:
            file.write(f"{self.model_dump_json()}\n")


class Pace(Record):
    """Medians over the rounds."""

    images_per_s: float
    cpu_ms: float
    """of all threads, for one image"""


class Baseline(Record):
    """The speed of decoding and inference on a machine with no server around them (`loadtest/baseline.py`)."""

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
    """number of CPUs / CPU-seconds an image of decoding and inference, each at its best"""
    lone_ms: float
    """decode and infer one image, wall time, median over the photos"""

    @property
    def cpu_ms(self) -> float:
        """CPU time of one image."""
        return 1e3 * self.cpus / self.images_per_s


class Shares(Record):
    """Shares of the machine's CPUs."""

    client_share: float
    server_share: float | None
    others_share: float | None
    """used by neither; both None if the server's processes are unknown"""


class Figures(Shares):
    """The figures of a closed loop."""

    images: int
    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_batch: float
    server_cpu_ms: float | None
    """of all its processes, for one image"""
    client_cpu_ms: float
    errors: int
    faults: dict[str, int]
    """the most frequent first"""

    @classmethod
    def of(cls, window: "Window[Meters]") -> "Figures":
        """Compute the figures of a window.

        Raises:
            LoadTestError: it has no answers.
        """
        images = len(window.latencies_s)
        if not images:
            raise LoadTestError(f"no answers within {window.seconds:.1f} s: {'; '.join(window.faults) or 'too slow'}")
        used = window.after.since(window.before)
        p50_ms, p95_ms, p99_ms = percentiles_ms(window.latencies_s, 50, 95, 99)
        return cls(
            **used.shares(window.seconds).model_dump(),
            images=images,
            images_per_s=images / window.seconds,
            p50_ms=p50_ms,
            p95_ms=p95_ms,
            p99_ms=p99_ms,
            mean_batch=harmonic_mean(window.batch_sizes),  # a batch of n is reported n times
            server_cpu_ms=None if used.server is None else 1e3 * used.server / images,
            client_cpu_ms=1e3 * used.client / images,
            errors=window.faults.total(),
            faults=dict(window.faults.most_common(MOST_FAULTS)),
        )

    def __str__(self) -> str:
        return (
            f"{self.images_per_s:8.1f} images/s  p50 {self.p50_ms:7.1f}  p99 {self.p99_ms:7.1f} ms"
            f"  {self.server_cpu_ms or 0:7.2f} CPU-ms  server {self.server_share or 0:4.0%}"
            f"  others {self.others_share or 0:4.0%}  batch {self.mean_batch:4.1f}"
        )


class Step(Figures):
    """A closed loop compared with the baseline."""

    connections: int
    share_of_baseline: float | None
    """of the mean of the baselines measured before and after"""
    useful_cpu: float | None
    """share of the server's CPU time that decoding and inference need"""


class Bench(Record):
    """What `loadtest/bench.py --json` writes."""

    model: str
    photos: int
    baselines: list[Baseline | None]
    """before and after each step"""
    steps: list[Step]


class Times(Record):
    """How often something happened, and how long after a request was due (or sent, for errors)."""

    per_s: float
    p50_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, latencies_s: Sequence[float], seconds: float) -> "Times":
        """Percentiles are None if nothing happened."""
        p50_ms, p99_ms = percentiles_ms(latencies_s, 50, 99) if latencies_s else (None, None)
        return cls(per_s=len(latencies_s) / seconds, p50_ms=p50_ms, p99_ms=p99_ms)


class OverloadStep(Shares):
    """An open loop at one offered load. All counts are of requests that were due in the window."""

    factor: float
    """of the capacity"""
    offered_per_s: float
    """requests actually due in the window, which Poisson arrivals vary"""
    good: Times
    """right and in time"""
    accepted: Times
    """right, in time or not"""
    refused: Times
    """errors other than `overdue`, all codes together"""
    overdue: Times
    codes: dict[str, Times]
    late: int
    """right, but after the deadline"""
    wrong: int
    lost: int
    unsent: int
    """for lack of a free socket"""
    sockets: int
    lateness_p99_ms: float
    """of the generator"""


class Overload(Record):
    """One server's results, as `loadtest/overload.py --write` writes them."""

    command: str
    name: str
    model: str
    photo_kb: float
    cpus: int
    deadline_ms: float
    seconds: float
    sockets: int
    connections: int
    capacity_per_s: float
    """in a closed loop of `connections`"""
    capacity_afterwards_per_s: float
    steps: list[OverloadStep]


def percentiles_ms(latencies_s: Sequence[float], *percents: float) -> list[float]:
    """Percentiles of seconds, in milliseconds; NaN where there are none."""
    if not latencies_s:
        return [float("nan")] * len(percents)
    return [float(value) for value in 1e3 * np.percentile(latencies_s, percents)]


def read(kind: type[Kind], path: Path) -> Kind:
    """Read what a command wrote as JSON.

    Raises:
        LoadTestError: the file holds something else.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise LoadTestError(f"{path}: {' '.join(str(error).split())}") from error


def read_lines(kind: type[Measured], path: Path) -> list[Measured]:
    """Read everything that was appended to a file; an incomplete last line is removed from it.

    Raises:
        LoadTestError: a line holds something else.
    """
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    try:
        return [kind.model_validate_json(line) for line in whole.splitlines()]
    except ValidationError as error:
        raise LoadTestError(f"{path}: {' '.join(str(error).split())}") from error
