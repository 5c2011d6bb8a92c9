"""The machine under load: who uses its CPU time, and what it can do without a server."""

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
    """CPU-seconds since an arbitrary start."""

    server: float | None
    """None: its processes are unknown"""
    client: float
    machine: float
    """of all processes"""

    def since(self, before: "Meters") -> "Meters":
        """The CPU time used between two readings."""
        server = None if self.server is None else self.server - (before.server or 0.0)
        return Meters(server, self.client - before.client, self.machine - before.machine)

    def shares(self, seconds: float) -> Shares:
        """These as shares of the CPU time available in `seconds`."""
        cpu_s = seconds * (psutil.cpu_count() or 1)
        server = others = None
        if self.server is not None:
            server = self.server / cpu_s
            others = max(0.0, self.machine - self.server - self.client) / cpu_s
        return Shares(client_share=self.client / cpu_s, server_share=server, others_share=others)


def read_meters(server: Iterable[psutil.Process] | None) -> Meters:
    """CPU time of a server's processes, of this one, and of all; processes that have ended do not count."""
    machine = psutil.cpu_times()
    return Meters(
        None if server is None else sum(_cpu_s(member) for member in server),
        _cpu_s(psutil.Process()),
        sum(machine) - machine.idle - getattr(machine, "iowait", 0.0),  # only Linux reports iowait
    )


def baseline(model: str, repository: Path, photos: Sequence[Path], seconds: float) -> Baseline | None:
    """Measure the baseline now, in a separate process that this one's memory and threads cannot disturb.

    Returns None, and prints a line to standard error, if it cannot be measured.
    """
    command = [sys.executable, "-m", "loadtest.baseline", "--json", "--model", model, "--seconds", str(seconds)]
    command += ["--repository", str(repository), *map(str, photos)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        *_, reason = f"it ended with {done.returncode}", *done.stderr.strip().splitlines()
        print(f"no baseline: {reason}", file=sys.stderr)
        return None
    return Baseline.model_validate_json(done.stdout)


def _cpu_s(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def cpu_s_by_thread(process: psutil.Process) -> tuple[float, float]:
    """CPU-seconds so far of a process's first thread, and of its other threads that still run."""
    threads = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    first_s = threads.pop(process.pid, 0.0)
    return first_s, sum(threads.values())


def cpu_name() -> str:
    """The model name of the machine's CPUs."""
    lines: list[str] = []
    with suppress(FileNotFoundError):  # where it is not Linux
        lines = CPUINFO.read_text().splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "CPU")


def usable_cpus() -> int:
    """Number of CPUs this process may run on: all of them on systems without CPU affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
