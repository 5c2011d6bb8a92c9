"""`python loadtest/capacity.py --per-s 2000 --p99-ms 100 --bench bench.json`: how many machines that takes.

The costs of an image are those that `loadtest/bench.py --json` measured, all of them on one machine of the kind that is
meant. The number of machines is the least for which a simulation of the real scheduler, `python -m server.simulate`,
meets the 99th percentile and leaves no request without an answer; what the CPUs alone would need is printed beside it.
`--check overload.json` first compares the simulation of one machine with what `loadtest/overload.py` measured on it.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MOST_MACHINES = 2000
MAX_FAILED = 0.001
"""Share of requests that may be refused or late: a target is no target where many are not served."""
SIMULATED_REQUESTS = 40_000
BALANCERS = ("random", "round-robin", "least-connections")

Report = dict[str, Any]
"""What `python -m server.simulate` prints."""


class CapacityError(Exception):
    """There is no answer; the message says why."""


def main() -> int:
    """Print the number of machines and how it was found; 0 is success."""
    options = _parse()
    try:
        costs = (
            json.loads(options.costs.read_text()) if options.costs else costs_of(json.loads(options.bench.read_text()))
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "costs.json"
            path.write_text(json.dumps(costs))
            if options.check:
                _check(Path(folder) / "left.json", costs, json.loads(options.check.read_text())[0])
            if options.per_s:
                _plan(path, costs, options)
    except (CapacityError, OSError, ValueError, LookupError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def costs_of(bench: Mapping[str, Any]) -> dict[str, Any]:
    """What one image costs, for `python -m server.simulate`, out of what `bench.py --json` wrote.

    Of several measurements the best counts, since others on the machine only ever slow it down. What the server itself
    takes beyond decoding and inference is the rest of its CPU time where it was fastest.

    Raises:
        CapacityError: the bench could not measure the limit, or the server's CPU time.
    """
    limits = [limit for limit in bench["limits"] if limit]
    steps = [step for step in bench["steps"] if step["server_cpu_ms"] is not None]
    if not limits or not steps:
        raise CapacityError("the bench measured no limit or no CPU time: run it without --url, with the repository")
    inference = {
        size: {
            "images_per_s": max(limit["inference"][size]["images_per_s"] for limit in limits),
            "cpu_ms": min(limit["inference"][size]["cpu_ms"] for limit in limits),
        }
        for size in limits[0]["inference"]
    }
    decode_ms = min(pace["cpu_ms"] for limit in limits for pace in limit["decode"].values())
    busiest = max(steps, key=lambda step: float(step["images_per_s"]))
    sizes = sorted(inference, key=int)
    sizes_ms = [inference[size]["cpu_ms"] for size in sizes]
    inference_ms = float(np.interp(busiest["mean_batch"], [int(size) for size in sizes], sizes_ms))
    return {
        "cpus": limits[0]["cpus"],
        "decode_ms": [decode_ms],
        "overhead_ms": max(0.0, busiest["server_cpu_ms"] - decode_ms - inference_ms),
        "inference": inference,
    }


def bound_per_s(costs: Mapping[str, Any]) -> float:
    """Images a second that one machine's CPUs, or the device, could do at best."""
    before_ms = float(np.mean(costs["decode_ms"])) + costs["overhead_ms"]
    best_ms = min(pace["cpu_ms"] for pace in costs["inference"].values())
    device_per_s = max(pace["images_per_s"] for pace in costs["inference"].values())
    cpus_per_s: float = 1e3 * costs["cpus"] / (before_ms + best_ms)
    return cpus_per_s if best_ms else min(cpus_per_s, device_per_s)


def least(meets: Callable[[int], bool], first: int) -> int:
    """The least number for which `meets` holds, given that it holds for all larger ones; the search begins at `first`.

    Raises:
        CapacityError: it holds for none up to MOST_MACHINES.
    """
    low, high = 0, first  # too few, and a number to try
    while not meets(high):
        if high >= MOST_MACHINES:
            raise CapacityError(f"{MOST_MACHINES} machines do not meet it: even one alone is slower than that")
        low, high = high, min(MOST_MACHINES, max(high + 1, math.ceil(high * 1.25)))
    while high - low > 1:
        middle = (low + high + 1) // 2 if low else max(1, high - max(1, high // 8))
        if meets(middle):
            high = middle
        else:
            low = middle
    return high


def _plan(path: Path, costs: Mapping[str, Any], options: argparse.Namespace) -> None:
    bound = bound_per_s(costs)
    bound_machines = math.ceil(options.per_s / bound)
    print(f"one machine could do {bound:.1f} images/s at best, so {bound_machines} at least would be needed\n")
    print("machines   busy   p50 ms   p99 ms  not served", flush=True)

    def meets(machines: int) -> bool:
        report = _simulate(path, options.per_s, machines, options.balancer, {})
        failed = report["refused"] + report["expired"]
        milliseconds = f"{1e3 * report['p50_s']:9.1f}{1e3 * report['p99_s']:9.1f}"
        print(f"{machines:8}{report['busy']:7.0%}{milliseconds}{failed:12.2%}", flush=True)
        stable = machines * bound > options.per_s  # else queues grow for ever, whatever they did while we looked
        return bool(stable and failed <= MAX_FAILED and 1e3 * report["p99_s"] <= options.p99_ms)

    found = least(meets, max(1, math.ceil(bound_machines / 0.8)))
    print(
        f"\n{found} machines answer {options.per_s:g} requests/s with p99 within {options.p99_ms:g} ms behind a "
        f"{options.balancer} balancer, each {options.per_s / found / bound:.0%} of what it could do; "
        f"for one to fail unnoticed: {found + 1}"
    )


def _check(path: Path, costs: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """What the simulation says of one machine beside what was measured on it.

    The load generator was on it, too: what it and others took is not there for the server.
    """
    print(" offered/s     good/s      p50 ms      p99 ms   (measured, simulated)")
    for step in measured["steps"]:
        taken = (step["client_share"] or 0) + (step["others_share"] or 0)
        path.write_text(json.dumps({**costs, "cpus": costs["cpus"] * (1 - taken)}))
        settings = {"SERVER_TIMEOUT_MS": str(measured["deadline_ms"])}
        report = _simulate(path, step["offered_per_s"], 1, "random", settings)
        pairs = [
            (step["good"]["per_s"], report["good_per_s"]),
            *((step["accepted"][f"{part}_ms"], 1e3 * report[f"{part}_s"]) for part in ("p50", "p99")),
        ]
        cells = (f"{real or math.nan:6.0f}{simulated:6.0f}" for real, simulated in pairs)
        print(f"{step['offered_per_s']:10.0f}{''.join(cells)}", flush=True)
    print()


def _simulate(path: Path, per_s: float, machines: int, balancer: str, settings: Mapping[str, str]) -> Report:
    """One simulation, in a process of its own: this folder does not know the server's code.

    Raises:
        CapacityError: it fails.
    """
    command = [sys.executable, "-m", "server.simulate", str(path), "--per-s", str(per_s), "--machines", str(machines)]
    command += ["--balancer", balancer, "--seconds", str(SIMULATED_REQUESTS / per_s)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})  # noqa: S603
    if done.returncode:
        raise CapacityError(done.stderr.strip().splitlines()[-1])
    report: Report = json.loads(done.stdout)
    return report


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="capacity.py", description=__doc__)
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--bench", type=Path, metavar="JSON", help="what bench.py --json wrote")
    measured.add_argument("--costs", type=Path, metavar="JSON", help="costs by hand, as server.simulate takes them")
    parser.add_argument("--per-s", type=float, metavar="R", help="requests a second that are to be answered")
    parser.add_argument("--p99-ms", type=float, default=100, metavar="MS", help="default 100")
    parser.add_argument("--balancer", choices=BALANCERS, default="random", help="before the machines (default random)")
    parser.add_argument(
        "--check", type=Path, metavar="JSON", help="what overload.py --write wrote here: its first server"
    )
    options = parser.parse_args()
    if not (options.per_s or options.check):
        parser.error("--per-s says for how much, --check against what")
    return options


if __name__ == "__main__":
    sys.exit(main())
