"""`python docs/measurements/dispatch.py`: which engine should get an image. Prints the table of dispatch.md.

Simulates (`loadtest/simulate.py`) one machine with the server's own scheduler, several devices whose batches take the
times written here, and CPUs that limit nothing.
"""

import argparse
import sys
from typing import get_args

from loadtest import command
from loadtest.simulate import Costs, Dispatch, Inference, Report, Shape, simulate
from server.engine.scheduler import Limits

IMAGES_PER_S = {1: 800.0, 8: 5000.0, 32: 10_000.0, 64: 12_000.0}
"""By batch size: about what a data-centre GPU does with a ResNet-50."""
CPUS = 4096
"""Far more than are needed."""
REQUESTS = 15_000
LOADS = (0.02, 0.1, 0.3, 0.6, 0.9)


def main() -> int:
    """Print a row for each load."""
    parser = argparse.ArgumentParser(prog="dispatch.py", description=__doc__)
    parser.add_argument("--devices", type=int, default=4, metavar="N", help="default 4")
    parser.add_argument("--max-batch", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument(
        "--last-takes", type=float, default=1, metavar="X", help="times as long, the last one (default 1)"
    )
    options = parser.parse_args()
    rules = get_args(Dispatch)
    print(f"| load | {' | '.join(f'{rule}: p50, p99 ms, batch' for rule in rules)} |")
    print(f"| ---: |{' --- |' * len(rules)}")
    for load in LOADS:
        reports = [_simulate(load, rule, options) for rule in rules]
        print(f"| {load:.0%} | {' | '.join(map(_cell, reports))} |", flush=True)
    return 0


def _simulate(load: float, rule: Dispatch, options: argparse.Namespace) -> Report:
    devices, max_batch = options.devices, options.max_batch
    sizes = {size: Inference(images_per_s=rate, cpu_ms=0) for size, rate in IMAGES_PER_S.items()}
    costs = Costs(cpus=CPUS, decode_ms=(1.7,), inference=sizes)
    shape = Shape(
        Limits(max_batch, 0.0, 65536), 10.0, CPUS, engines=devices, dispatch=rule, last_takes=options.last_takes
    )
    best_per_s = max(rate for size, rate in IMAGES_PER_S.items() if size <= max_batch)
    return simulate(costs, shape, load * (devices - 1 + 1 / options.last_takes) * best_per_s, REQUESTS)


def _cell(report: Report) -> str:
    missed = report.refused + report.expired
    late = f", {missed:.0%} not served" if missed > 0.001 else ""
    return f"{1e3 * report.p50_s:.1f}, {1e3 * report.p99_s:.1f}, {report.mean_batch:.1f}{late}"


if __name__ == "__main__":
    sys.exit(command.run(main))
