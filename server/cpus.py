"""The instructions that this machine's CPUs have, and how many CPUs this process may really use."""

import math
import os
from collections.abc import Set
from pathlib import Path

from models import hints
from models.manifest import Manifest

CGROUP_ROOT = Path("/sys/fs/cgroup")
SELF_CGROUP = Path("/proc/self/cgroup")
CPUINFO = Path("/proc/cpuinfo")
SYSTEM = Path("/sys/devices/system")
VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""CPU flags for instructions that add four 8-bit products in 32 bits."""


BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""CPU flags for instructions that multiply in bfloat16."""


def flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Flags of the CPU, by Linux's names; none if unknown."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    found = (
        value for name, _, value in (line.partition(":") for line in lines) if name.strip() in ("flags", "Features")
    )
    return frozenset(next(found, "").split())


def why_not(model: Manifest, cpu_flags: Set[str]) -> str | None:
    """Why this CPU would give other answers than the CPU a model was verified on; None: it would not, or is unknown.

    Without VNNI, x86 adds two 8-bit products in 16 bits, which overflow if the weights use all 8 bits.
    """
    if "sse2" not in cpu_flags:
        return None
    source = model.conversion.source if model.conversion else model.name
    if model.precision == "bf16" and not cpu_flags & BF16:
        return f"it needs a CPU that multiplies in bfloat16 (avx512_bf16 or amx_bf16): serve {source}, its FP32 model"
    if not (model.needs_vnni or model.quantized_for == "x86-vnni") or cpu_flags & VNNI:
        return None
    made = f"{hints.export('quantize', source, '--target', 'x86')} makes one for every x86 CPU"
    if model.needs_vnni:
        made = f"import its FP32 file with {hints.export('from_onnx')}, and quantise that with --target x86"
    return (
        "it was quantised for CPUs with VNNI, which this one lacks, so its sums overflow and its answers change:"
        f" {made}"
    )


def allowed_cpus() -> set[int]:
    """The CPUs that this process may run on: all of them, if the system cannot pin processes to CPUs."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def nodes(root: Path = SYSTEM) -> tuple[tuple[int, ...], ...]:
    """The CPUs that this process may run on, by NUMA node, those of one core side by side.

    Empty if the system cannot pin processes to CPUs: no engine could make use of them.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ()
    allowed = allowed_cpus()

    def core(cpu: int) -> tuple[int, int]:
        siblings = _listed(root / f"cpu/cpu{cpu}/topology/thread_siblings_list")
        return min(siblings, default=cpu), cpu

    folders = sorted(root.glob("node/node[0-9]*"), key=lambda path: int(path.name.removeprefix("node")))
    found = [allowed & _listed(folder / "cpulist") for folder in folders]
    if set().union(*found) != allowed:  # the nodes are unknown: assume one
        found = [allowed]
    return tuple(tuple(sorted(node, key=core)) for node in found if node)


def _listed(path: Path) -> set[int]:
    """The numbers in one of the kernel's files, such as "0-3,8"; none if there is no such file."""
    try:
        ranges = [part.split("-") for part in path.read_text().strip().split(",")]
        return {number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)}
    except (OSError, ValueError):
        return set()


def available_cpus() -> int:
    """How many CPUs this process may use: the smaller of its affinity mask and the cgroup's quota (rounded up).

    `os.cpu_count()` counts all CPUs of the host, even in a container that may use only two of 64.
    """
    return max(1, math.ceil(min(len(allowed_cpus()), cgroup_quota())))


def cgroup_quota(root: Path = CGROUP_ROOT, self_cgroup: Path = SELF_CGROUP) -> float:
    """CPUs granted by the tightest cgroup from this process's own up to the root; infinity without a limit.

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
