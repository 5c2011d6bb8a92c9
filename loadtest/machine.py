"""The machine under load: CPU time by who took it, and what there would be without a server."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

Limit = dict[str, Any]
"""What `python -m server.limit --json` prints."""


class Meters(NamedTuple):
    """CPU-seconds since whatever beginning."""

    server: float
    client: float
    machine: float
    """of all processes"""

    def since(self, before: "Meters") -> "Meters":
        """What was taken between two readings."""
        return Meters(*(now - then for now, then in zip(self, before, strict=True)))


def read_meters(server: Iterable[psutil.Process]) -> Meters:
    """CPU time of a server's processes, of this one, and of all; a process that has ended counts nothing."""
    machine = psutil.cpu_times()
    return Meters(
        sum(_cpu_s(member) for member in server),
        _cpu_s(psutil.Process()),
        sum(machine) - machine.idle - machine.iowait,
    )


def limit(model: str, repository: Path, photos: Sequence[Path], seconds: float) -> Limit | None:
    """What the machine can do now; None, and a line on standard error, where it cannot be measured."""
    command = [sys.executable, "-m", "server.limit", "--json", "--model", model, "--seconds", str(seconds)]
    command += ["--repository", str(repository), *map(str, photos)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        print(f"no limit: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    measured: Limit = json.loads(done.stdout)
    return measured


def _cpu_s(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0
