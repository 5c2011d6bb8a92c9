"""The machine under load: its CPU time by who took it, and what it can do without a server."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from loadtest.results import Baseline, Shares

CPUINFO = Path("/proc/cpuinfo")


class Meters(NamedTuple):
    """CPU-seconds since whatever beginning."""

    server: float | None
    """None: its processes are not known"""
    client: float
    machine: float
    """of all processes"""

    def since(self, before: "Meters") -> "Meters":
        """What was taken between two readings."""
        server = None if self.server is None else self.server - (before.server or 0.0)
        return Meters(server, self.client - before.client, self.machine - before.machine)

    def shares(self, seconds: float) -> Shares:
        """What this is of the CPUs' time in so many seconds."""
        cpu_s = seconds * (psutil.cpu_count() or 1)
        server = others = None
        if self.server is not None:
            server = self.server / cpu_s
            others = max(0.0, self.machine - self.server - self.client) / cpu_s
        return Shares(client_share=self.client / cpu_s, server_share=server, others_share=others)


def read_meters(server: Iterable[psutil.Process] | None) -> Meters:
    """CPU time of a server's processes, of this one, and of all; a process that has ended counts nothing."""
    machine = psutil.cpu_times()
    return Meters(
        None if server is None else sum(_cpu_s(member) for member in server),
        _cpu_s(psutil.Process()),
        sum(machine) - machine.idle - getattr(machine, "iowait", 0.0),  # which only Linux tells
    )


def baseline(model: str, repository: Path, photos: Sequence[Path], seconds: float) -> Baseline | None:
    """What the machine can do now, measured in a process that has nothing of this one's memory and threads.

    None, and a line on standard error, where it cannot be measured.
    """
    command = [sys.executable, "-m", "loadtest.baseline", "--json", "--model", model, "--seconds", str(seconds)]
    command += ["--repository", str(repository), *map(str, photos)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        print(f"no baseline: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return Baseline.model_validate_json(done.stdout)


def _cpu_s(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def cpu_name() -> str:
    """What the machine calls its CPUs."""
    lines: list[str] = []
    with suppress(FileNotFoundError):  # where it is not Linux
        lines = CPUINFO.read_text().splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "CPU")


def usable_cpus() -> int:
    """How many CPUs this process may run on: all, where the system keeps no process to certain ones."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
