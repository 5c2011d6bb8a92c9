"""`python loadtest/bench.py`: how much of what this machine can do arrives at the clients of the server.

Starts the server (set up as always by `SERVER_...` in the environment), drives it in a closed loop with real photos at
several numbers of connections, and measures the limit, `python -m server.limit`, before and after each: the machine
may drift, so only figures of one run are compared. Exits with 1 on any error or wrong answer.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import harmonic_mean, mean

import numpy as np
import psutil
import uvloop

from loadtest import client, machine, photos, running
from loadtest.answers import WrongAnswerError
from loadtest.arguments import numbers
from loadtest.client import ClosedLoop, Window
from loadtest.machine import Limit, Meters
from loadtest.running import StartError

MOST_FAULTS = 10
"""Printed of those that differ; each may name its own request."""


class BenchError(Exception):
    """There is nothing to measure; the message says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """What was measured at one number of connections."""

    connections: int
    images_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    share_of_limit: float | None
    """of the mean of the limits measured before and after"""
    server_cpu_ms: float | None
    """of all its processes, for one image"""
    useful_cpu: float | None
    """share of the server's CPU time that decoding and inference need"""
    client_cpu_ms: float
    client_share: float
    """of the machine's CPUs"""
    others_share: float | None
    """of the machine's CPUs: taken by neither server nor client"""
    mean_batch: float
    errors: int


def main() -> int:
    """Run the benchmark and print its table; 0: all answers were right."""
    options = _parse()
    try:
        if options.url:
            return uvloop.run(_bench(options.url, None, options))
        models = ("--models", options.model) if options.model else ()
        with running.server("--repository", str(options.repository), *models) as (url, process):
            return uvloop.run(_bench(url, process, options))
    except (BenchError, StartError, WrongAnswerError, OSError, EOFError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


async def _bench(base_url: str, process: psutil.Process | None, options: argparse.Namespace) -> int:
    url = f"{base_url.rstrip('/')}/classify" + (f"?model={options.model}" if options.model else "")
    paths = photos.find(options.photos)
    model, sent = await client.ask_alone(url, [path.read_bytes() for path in paths])
    print(f"{model}, {len(sent)} photos, {options.seconds:g} s after {options.warm_up:g} s of warm-up each\n")
    print(_row(None), flush=True)
    limits = [machine.limit(model, options.repository, paths, options.seconds)]
    steps: list[Step] = []
    faults: set[str] = set()
    for connections in options.connections:
        loop = ClosedLoop(url, sent)
        window = await loop.run(
            connections, options.warm_up, options.seconds, lambda: machine.read_meters(running.tree(process))
        )
        limits.append(limits[0] and machine.limit(model, options.repository, paths, options.seconds))
        steps.append(_step(connections, window, limits[-2:], has_server=process is not None))
        faults |= window.faults.keys()
        print(_row(steps[-1]), flush=True)
    print(_LEGEND, _limits_text(limits), sep="\n")
    for fault in sorted(faults)[:MOST_FAULTS]:
        print(f"error: {fault}", file=sys.stderr)
    if options.json:
        result = {"model": model, "photos": len(sent), "limits": limits, "steps": [asdict(step) for step in steps]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if faults else 0


def _step(connections: int, window: Window[Meters], limits: Sequence[Limit | None], *, has_server: bool) -> Step:
    images = len(window.latencies_s)
    if not images:
        raise BenchError(f"{connections} connections: no answers; {'; '.join(window.faults)}")
    used = window.after.since(window.before)
    known = [limit for limit in limits if limit]
    limit_per_s = mean(limit["images_per_s"] for limit in known) if known else None
    needed_ms = 1e3 * known[0]["cpus"] / limit_per_s if limit_per_s else None
    server_ms = 1e3 * used.server / images if has_server else None
    cpu_s = window.seconds * (psutil.cpu_count() or 1)
    p50_s, p95_s, p99_s = np.percentile(window.latencies_s, (50, 95, 99)).tolist()
    return Step(
        connections,
        images_per_s=images / window.seconds,
        p50_ms=1e3 * p50_s,
        p95_ms=1e3 * p95_s,
        p99_ms=1e3 * p99_s,
        share_of_limit=images / window.seconds / limit_per_s if limit_per_s else None,
        server_cpu_ms=server_ms,
        useful_cpu=needed_ms / server_ms if needed_ms and server_ms else None,
        client_cpu_ms=1e3 * used.client / images,
        client_share=used.client / cpu_s,
        others_share=max(0.0, used.machine - used.server - used.client) / cpu_s if has_server else None,
        mean_batch=harmonic_mean(window.batch_sizes),  # a batch of n is reported n times
        errors=window.faults.total(),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


_COLUMNS: dict[str, Callable[[Step], str]] = {
    "connections": lambda step: str(step.connections),
    "images/s": lambda step: f"{step.images_per_s:.1f}",
    "of limit": lambda step: _percent(step.share_of_limit),
    "p50 ms": lambda step: f"{step.p50_ms:.1f}",
    "p95 ms": lambda step: f"{step.p95_ms:.1f}",
    "p99 ms": lambda step: f"{step.p99_ms:.1f}",
    "server CPU-ms": lambda step: "-" if step.server_cpu_ms is None else f"{step.server_cpu_ms:.2f}",
    "useful": lambda step: _percent(step.useful_cpu),
    "client CPU-ms": lambda step: f"{step.client_cpu_ms:.2f}",
    "client": lambda step: _percent(step.client_share),
    "others": lambda step: _percent(step.others_share),
    "batch": lambda step: f"{step.mean_batch:.1f}",
    "errors": lambda step: str(step.errors),
}
_LEGEND = """
of limit: share of what decoding and inference without a server could do on this machine
server, client CPU-ms: CPU time for one image; useful: share of the server's that decoding and inference need
client, others: share of this machine's CPUs that the client and all but client and server took"""


def _row(step: Step | None) -> str:
    """A line of the table; None: its head."""
    cells = (text(step) if step else title for title, text in _COLUMNS.items())
    return "  ".join(cell.rjust(max(6, len(title))) for cell, title in zip(cells, _COLUMNS, strict=True))


def _limits_text(limits: Sequence[Limit | None]) -> str:
    """How the limit moved during the run."""
    known = [limit for limit in limits if limit]
    if not known:
        return "\nthe limit was not measured"
    rows = [
        ("limit, images/s", [limit["images_per_s"] for limit in known]),
        ("decode, CPU-ms", [min(pace["cpu_ms"] for pace in limit["decode"].values()) for limit in known]),
        ("inference, CPU-ms", [min(pace["cpu_ms"] for pace in limit["inference"].values()) for limit in known]),
        ("one photo alone, ms", [limit["lone_ms"] for limit in known]),
    ]
    columns = "\n".join(f"{name:20}" + "".join(f"{value:8.1f}" for value in values) for name, values in rows)
    return f"\nwithout a server, before and after each row ({known[0]['cpus']} CPUs):\n{columns}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__)
    parser.add_argument("--url", help="of a server that runs on this machine, such as http://127.0.0.1:8000")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="FOLDER")
    parser.add_argument("--model", metavar="NAME", help="if not the server's default")
    parser.add_argument("--photos", type=Path, default=photos.FOLDER, metavar="FOLDER")
    parser.add_argument("--connections", type=numbers(int), default=[1, 8, 32], metavar="N,N,…", help="default 1,8,32")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="of each measurement (default 10)")
    parser.add_argument("--warm-up", type=float, default=2, metavar="S", help="before each (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
