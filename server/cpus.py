"""How many CPUs this process may really use."""

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
SELF_CGROUP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """The smaller of the affinity mask and the cgroup's CPU quota (rounded up), at least 1.

    `os.cpu_count()` counts the host's CPUs, also in a container that may use two of its 64.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), cgroup_quota())))


def cgroup_quota(root: Path = CGROUP_ROOT, self_cgroup: Path = SELF_CGROUP) -> float:
    """CPUs granted by the tightest cgroup from this process's own up to the root; infinity where there is no limit.

    Reads version 2 (`cpu.max`: "quota period" or "max period", microseconds) and version 1 (`cpu.cfs_quota_us`, -1
    for no limit, over `cpu.cfs_period_us`).
    """
    try:
        lines = self_cgroup.read_text().splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):
            quota = min(quota, _quota_of(folder))
            if folder == base:
                break
    return quota


def _quota_of(folder: Path) -> float:
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((folder / name).read_text() for name in files).split()
            if quota not in ("max", "-1"):
                return int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return math.inf
