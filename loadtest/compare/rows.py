"""What was measured, a line of JSON for each server, round and number of connections, so that a run can go on later."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class Key(NamedTuple):
    """What a row is about."""

    work: str
    server: str
    variant: str
    connections: int
    round: int


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Record):
    """What `python -m server.limit` found before and after the server ran, on average."""

    images_per_s: float
    cpu_ms: float
    lone_ms: float


class Measured(_Record):
    """One server under one load."""

    images_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """of all its processes, for one image"""
    memory_mb: float
    """of all its processes, proportional set sizes"""
    processes: int
    start_s: float
    """from its start to its first right answer"""
    same_class: float
    """share of the photos whose best class is the reference's"""
    errors: int
    """of all kinds, among them answers other than the first to the same photo"""
    faults: dict[str, int]
    """the most frequent of them"""
    client_cpu_ms: float
    others_share: float
    """of the machine's CPUs: taken by neither server nor client"""


class Row(_Record):
    """Either what was measured or why nothing was."""

    work: str
    server: str
    variant: str
    connections: int
    round: int
    run: datetime
    """when the command was begun: rows of different runs are not side by side"""
    seconds: float
    limits: Limits | None
    measured: Measured | None = None
    failure: str | None = None

    @property
    def key(self) -> Key:
        """What it is about."""
        return Key(self.work, self.server, self.variant, self.connections, self.round)


def read(path: Path) -> list[Row]:
    """The rows of a file that measured something; what failed is to be tried again."""
    rows = (Row.model_validate_json(line) for line in path.read_text().splitlines()) if path.exists() else ()
    return [row for row in rows if row.measured]


def write(path: Path, rows: Iterable[Row], *, append: bool) -> None:
    """Write or append rows."""
    with path.open("a" if append else "w") as file:
        file.writelines(f"{row.model_dump_json()}\n" for row in rows)
