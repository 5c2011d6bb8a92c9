"""The measurements: a line of JSON for each server, round and number of connections, so that a run can be resumed."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from loadtest.results import Figures, Record, read_lines


class Key(NamedTuple):
    """Identifies a row."""

    work: str
    server: str
    variant: str
    connections: int
    round: int


class Around(Record):
    """The baselines (`loadtest/baseline.py`) before and after the server ran, on average."""

    images_per_s: float
    cpu_ms: float
    lone_ms: float


class Measured(Figures):
    """One server under one load; errors include answers that differ from the first one to the same photo."""

    memory_mb: float
    """of all its processes, proportional set sizes"""
    processes: int
    start_s: float
    """from its start to its first right answer"""
    same_class: float
    """share of the photos whose best class is the reference's"""


class Row(Record):
    """Either a measurement, or why there is none."""

    work: str
    server: str
    variant: str
    connections: int
    round: int
    run: datetime
    """when the command was started: rows of different runs were not measured side by side"""
    seconds: float
    baseline: Around | None
    measured: Measured | None = None
    failure: str | None = None

    @property
    def key(self) -> Key:
        """Its identity."""
        return Key(self.work, self.server, self.variant, self.connections, self.round)


def read(path: Path) -> list[Row]:
    """The rows of a file that hold a measurement; failures are to be tried again."""
    return [row for row in read_lines(Row, path) if row.measured]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Start a file with some rows."""
    path.write_text("".join(f"{row.model_dump_json()}\n" for row in rows))
