"""`python loadtest/bench.py`: what share of this machine's capacity the server delivers to its clients.

Starts the server (configured by `SERVER_...` in the environment, as usual), drives it in a closed loop with real photos
at several numbers of connections, and measures the baseline (`loadtest/baseline.py`) before and after each. Machines
drift, so compare only figures from the same run. Exits with 1 on any error or wrong answer.
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import psutil
import uvloop

from loadtest import command, loops, machine, photos, processes, tables
from loadtest.command import numbers
from loadtest.loops import Target
from loadtest.results import MOST_FAULTS, Baseline, Bench, Figures, Step
from loadtest.tables import decimal, percent

COLUMNS: tables.Columns[Step] = {
    "connections": lambda step: str(step.connections),
    "images/s": lambda step: f"{step.images_per_s:.1f}",
    "of baseline": lambda step: percent(step.share_of_baseline),
    "p50 ms": lambda step: f"{step.p50_ms:.1f}",
    "p95 ms": lambda step: f"{step.p95_ms:.1f}",
    "p99 ms": lambda step: f"{step.p99_ms:.1f}",
    "server CPU-ms": lambda step: decimal(step.server_cpu_ms, 2),
    "useful": lambda step: percent(step.useful_cpu),
    "client CPU-ms": lambda step: f"{step.client_cpu_ms:.2f}",
    "client": lambda step: percent(step.client_share),
    "others": lambda step: percent(step.others_share),
    "batch": lambda step: f"{step.mean_batch:.1f}",
    "errors": lambda step: str(step.errors),
}
LEGEND = """
of baseline: share of the images/s that decoding and inference alone could reach on this machine
server, client CPU-ms: CPU time for one image; useful: share of the server's CPU time that decoding and inference need
client, others: share of this machine's CPUs used by the client, and by everything but client and server"""

Members = Callable[[], Sequence[psutil.Process] | None]
"""A server's processes; None if they are unknown."""


def main() -> int:
    """Run the benchmark and print its table; 0: all answers were right."""
    options = _parse()
    if options.url:
        return uvloop.run(_bench(options.url, lambda: None, options))
    models = ("--models", options.model) if options.model else ()
    with processes.serve("--repository", str(options.repository), *models) as server:
        return uvloop.run(_bench(server.url, server.members, options))


async def _bench(base_url: str, members: Members, options: argparse.Namespace) -> int:
    target = Target(f"{base_url.rstrip('/')}/classify" + (f"?model={options.model}" if options.model else ""))
    paths = photos.find(options.photos)
    model, sent = await loops.ask_alone(target, [path.read_bytes() for path in paths])
    print(f"{model}, {len(sent)} photos, {options.seconds:g} s after {options.warm_up:g} s of warm-up each\n")
    print(tables.line(COLUMNS, None), flush=True)
    baselines = [machine.baseline(model, options.repository, paths, options.seconds)]
    steps: list[Step] = []
    for connections in options.connections:
        window = await loops.closed_loop(
            target, sent, connections, options.warm_up, options.seconds, lambda: machine.read_meters(members())
        )
        baselines.append(baselines[0] and machine.baseline(model, options.repository, paths, options.seconds))
        steps.append(_step(connections, Figures.of(window), [one for one in baselines[-2:] if one]))
        print(tables.line(COLUMNS, steps[-1]), flush=True)
    print(LEGEND, _baselines_text([one for one in baselines if one]), sep="\n")
    faults = sorted({fault for step in steps for fault in step.faults})
    for fault in faults[:MOST_FAULTS]:
        print(f"error: {fault}", file=sys.stderr)
    if options.json:
        bench = Bench(model=model, photos=len(sent), baselines=baselines, steps=steps)
        options.json.write_text(bench.model_dump_json(indent=1) + "\n")
    return 1 if faults else 0


def _step(connections: int, figures: Figures, baselines: Sequence[Baseline]) -> Step:
    best_per_s = mean(one.images_per_s for one in baselines) if baselines else None
    needed_ms = 1e3 * baselines[0].cpus / best_per_s if best_per_s else None
    return Step(
        **figures.model_dump(),
        connections=connections,
        share_of_baseline=figures.images_per_s / best_per_s if best_per_s else None,
        useful_cpu=needed_ms / figures.server_cpu_ms if needed_ms and figures.server_cpu_ms else None,
    )


def _baselines_text(baselines: Sequence[Baseline]) -> str:
    """How the baseline moved during the run."""
    if not baselines:
        return "\nthe baseline was not measured"
    rows = [
        ("baseline, images/s", [one.images_per_s for one in baselines]),
        ("decode, CPU-ms", [min(pace.cpu_ms for pace in one.decode.values()) for one in baselines]),
        ("inference, CPU-ms", [min(pace.cpu_ms for pace in one.inference.values()) for one in baselines]),
        ("one photo alone, ms", [one.lone_ms for one in baselines]),
    ]
    columns = "\n".join(f"{name:20}" + "".join(f"{value:8.1f}" for value in values) for name, values in rows)
    return f"\nwithout a server, before and after each row ({baselines[0].cpus} CPUs):\n{columns}"


def _parse() -> argparse.Namespace:
    parser = command.parser("bench.py", __doc__, seconds=10, warm_up=2)
    parser.add_argument("--url", help="use a server already running on this machine, such as http://127.0.0.1:8000")
    parser.add_argument("--connections", type=numbers(int), default=[1, 8, 32], metavar="N,N,…", help="default 1,8,32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main))
