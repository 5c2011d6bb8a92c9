"""`python loadtest/capacity.py --per-s 2000 --p99-ms 100 --bench bench.json`: how many machines that load needs.

The cost of an image comes from `loadtest/bench.py --json`, measured on one machine of the kind to be used. The result
is the smallest number of machines with which a simulation of the real scheduler (`loadtest/simulate.py`) meets the 99th
percentile and serves all but one in 1,000 requests. The number that CPU time alone would need is printed beside it.
`--check overload.json` first compares the simulation of one machine with what `loadtest/overload.py` measured on it.
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import get_args

import numpy as np

from loadtest import command
from loadtest.command import LoadTestError
from loadtest.results import Bench, Overload, read
from loadtest.simulate import Balancer, Costs, Inference, Report, Shape, simulate
from server.settings import Settings, WrongSettingsError
from server.settings import read as read_settings

MOST_MACHINES = 2000
MAX_FAILED = 0.001
"""Share of requests that may be refused or late: a latency target means nothing if many requests are not served."""
SIMULATED_REQUESTS = 40_000


def main() -> int:
    """Print the number of machines and how it was found; 0 is success."""
    options = _parse()
    costs = read(Costs, options.costs) if options.costs else costs_of(read(Bench, options.bench))
    if options.check:
        _check(costs, read(list[Overload], options.check)[0])
    if options.per_s:
        _plan(costs, options)
    return 0


def costs_of(bench: Bench) -> Costs:
    """Derive the cost of one image from the output of `bench.py --json`.

    Takes the best of several measurements, since other programs on the machine only ever slow it down. The server's
    overhead is its CPU time in its fastest step, less that of decoding and inference.

    Raises:
        LoadTestError: the bench could not measure the baseline, or the server's CPU time.
    """
    baselines = [baseline for baseline in bench.baselines if baseline]
    steps = [(step.images_per_s, step.mean_batch, step.server_cpu_ms) for step in bench.steps if step.server_cpu_ms]
    if not baselines or not steps:
        raise LoadTestError("the bench measured no baseline or no CPU time: run it without --url, with the repository")
    inference = {
        size: Inference(
            images_per_s=max(baseline.inference[size].images_per_s for baseline in baselines),
            cpu_ms=min(baseline.inference[size].cpu_ms for baseline in baselines),
        )
        for size in sorted(baselines[0].inference)
    }
    decode_ms = min(pace.cpu_ms for baseline in baselines for pace in baseline.decode.values())
    _, batch, server_ms = max(steps)
    inference_ms = float(np.interp(batch, list(inference), [pace.cpu_ms for pace in inference.values()]))
    return Costs(
        cpus=baselines[0].cpus,
        decode_ms=(decode_ms,),
        overhead_ms=max(0.0, server_ms - decode_ms - inference_ms),
        inference=inference,
    )


def bound_per_s(costs: Costs) -> float:
    """Upper bound on one machine's images a second, set by its CPUs or its device."""
    best_ms = min(pace.cpu_ms for pace in costs.inference.values())
    cpus_per_s = 1e3 * costs.cpus / (mean(costs.decode_ms) + costs.overhead_ms + best_ms)
    device_per_s = max(pace.images_per_s for pace in costs.inference.values())
    return cpus_per_s if best_ms else min(cpus_per_s, device_per_s)


def least(meets: Callable[[int], bool], first: int) -> int:
    """The smallest number for which `meets` holds, if it holds for all larger ones; the search begins at `first`.

    Raises:
        LoadTestError: it holds for none up to MOST_MACHINES.
    """
    low, high = 0, first  # too few, and a number to try
    while not meets(high):
        if high >= MOST_MACHINES:
            raise LoadTestError(f"even {MOST_MACHINES} machines do not meet it: an idle machine is already too slow")
        low, high = high, min(MOST_MACHINES, max(high + 1, math.ceil(high * 1.25)))
    while high - low > 1:
        middle = (low + high + 1) // 2 if low else max(1, high - max(1, high // 8))
        if meets(middle):
            high = middle
        else:
            low = middle
    return high


def _plan(costs: Costs, options: argparse.Namespace) -> None:
    settings, bound = read_settings(()), bound_per_s(costs)
    bound_machines = math.ceil(options.per_s / bound)
    print(f"one machine could do {bound:.1f} images/s at best, so {bound_machines} at least would be needed\n")
    print("machines   busy   p50 ms   p99 ms  not served", flush=True)

    def meets(machines: int) -> bool:
        report = _simulate(costs, settings, options.per_s, machines, options.balancer)
        failed = report.refused + report.expired
        milliseconds = f"{1e3 * report.p50_s:9.1f}{1e3 * report.p99_s:9.1f}"
        print(f"{machines:8}{report.busy:7.0%}{milliseconds}{failed:12.2%}", flush=True)
        stable = machines * bound > options.per_s  # or queues grow without end, if not in the time simulated
        return stable and failed <= MAX_FAILED and 1e3 * report.p99_s <= options.p99_ms

    found = least(meets, max(1, math.ceil(bound_machines / 0.8)))
    print(
        f"\n{found} machines answer {options.per_s:g} requests/s with p99 within {options.p99_ms:g} ms behind a "
        f"{options.balancer} balancer, each {options.per_s / found / bound:.0%} of what it could do; "
        f"to tolerate the loss of one: {found + 1}"
    )


def _check(costs: Costs, measured: Overload) -> None:
    """Print the simulation of one machine beside the measurements taken on it.

    The load generator ran there too, so the CPU time that it and other programs used is not left for the server.
    """
    settings = read_settings([f"--timeout-ms={measured.deadline_ms}"])
    print(" offered/s     good/s      p50 ms      p99 ms   (measured, simulated)")
    for step in measured.steps:
        left = max(0.01, costs.cpus * (1 - step.client_share - (step.others_share or 0)))
        report = _simulate(costs.model_copy(update={"cpus": left}), settings, step.offered_per_s)
        pairs = [
            (step.good.per_s, report.good_per_s),
            (step.accepted.p50_ms, 1e3 * report.p50_s),
            (step.accepted.p99_ms, 1e3 * report.p99_s),
        ]
        cells = (f"{real or math.nan:6.0f}{simulated:6.0f}" for real, simulated in pairs)
        print(f"{step.offered_per_s:10.0f}{''.join(cells)}", flush=True)
    print()


def _simulate(
    costs: Costs, settings: Settings, per_s: float, machines: int = 1, balancer: Balancer = "random"
) -> Report:
    return simulate(costs, Shape.of(settings, costs), per_s, SIMULATED_REQUESTS, machines, balancer)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="capacity.py", description=__doc__)
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--bench", type=Path, metavar="JSON", help="the output of bench.py --json")
    measured.add_argument("--costs", type=Path, metavar="JSON", help="costs written by hand, as for simulate.py")
    parser.add_argument("--per-s", type=float, metavar="R", help="requests a second to plan for")
    parser.add_argument("--p99-ms", type=float, default=100, metavar="MS", help="default 100")
    balancers = get_args(Balancer)
    parser.add_argument(
        "--balancer", choices=balancers, default="random", help="how requests are spread (default random)"
    )
    parser.add_argument(
        "--check", type=Path, metavar="JSON", help="the output of overload.py --write on this machine; first server"
    )
    options = parser.parse_args()
    if not (options.per_s or options.check):
        parser.error("give --per-s for a plan, or --check to compare with measurements")
    return options


if __name__ == "__main__":
    sys.exit(command.run(main, WrongSettingsError))
