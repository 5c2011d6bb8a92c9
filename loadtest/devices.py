"""`python loadtest/devices.py`: what 1, 2, 4 and 8 devices carry together, and what the rest of the server costs.

The devices are pretended (`loadtest/pretended.py`): each takes a set time for a batch and no CPU, so any other limit is
HTTP, decoding or the engines' loops. Each row is a server of its own with that many engines and as many requests under
way as fill three batches of each. CPU-ms are per image: of the event loops of HTTP workers, of their other threads,
which decode, of the engines, and of this client. The last column is what the CPUs could carry if they did nothing but
serve. Exits with 1 on a wrong answer.
"""

import models.missing  # noqa: F401 before what may be missing

# isort: split

import argparse
import os
import sys
from pathlib import Path
from statistics import harmonic_mean
from typing import NamedTuple

import psutil
import uvloop

from loadtest import command, loops, photos, processes, tables
from loadtest.command import numbers
from loadtest.loops import Target
from loadtest.machine import Meters, cpu_s_by_thread, read_meters
from loadtest.processes import Serving
from loadtest.tables import decimal, percent

BATCHES = 3
"""One runs, one waits in full, and one forms."""
ROOT = Path(__file__).parents[1]


class Row(NamedTuple):
    """One number of devices."""

    devices: int
    per_s: float
    proportional: float | None
    """share of what the first row's rate, multiplied by the devices, would be"""
    mean_batch: float
    http_ms: float
    decode_ms: float
    engines_ms: float
    client_ms: float
    """CPU time per image"""
    busy: float
    """share of the machine's CPUs"""

    @property
    def most_per_s(self) -> float:
        """What all CPUs could carry if they did nothing but serve."""
        return 1e3 * (psutil.cpu_count() or 1) / (self.http_ms + self.decode_ms + self.engines_ms)


COLUMNS: tables.Columns[Row] = {
    "devices": lambda row: str(row.devices),
    "images/s": lambda row: f"{row.per_s:.1f}",
    "of proportional": lambda row: percent(row.proportional),
    "batch": lambda row: f"{row.mean_batch:.1f}",
    "http CPU-ms": lambda row: decimal(row.http_ms),
    "decode CPU-ms": lambda row: decimal(row.decode_ms),
    "engines CPU-ms": lambda row: f"{row.engines_ms:.3f}",
    "client CPU-ms": lambda row: decimal(row.client_ms),
    "CPUs": lambda row: percent(row.busy),
    "at most/s": lambda row: f"{row.most_per_s:.0f}",
}


class _Readings(NamedTuple):
    """CPU-seconds so far."""

    http_s: float
    decode_s: float
    engines_s: float
    meters: Meters
    """of this client and of the machine"""


def main() -> int:
    """Measure each number of devices; returns 0 if all answers were right."""
    options = _parse()
    image_s = 1 / (2 * options.per_s)  # half of a full batch's time is a batch's own, as on a GPU
    seconds = f"{options.max_batch * image_s},{image_s}"
    print(tables.line(COLUMNS, None), flush=True)
    first: Row | None = None
    faults = 0
    for devices in options.devices:
        flags = ["--repository", options.repository, "--engines", devices, "--max-batch", options.max_batch]
        flags += ["--queue-size", 2 * BATCHES * devices * options.max_batch]  # workers do not share evenly
        flags += ["--models", options.model] if options.model else []
        environment = {
            "PRETENDED_S": seconds,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        with processes.serve(
            *map(str, flags), environment=environment, quiet=True, program="loadtest.pretended"
        ) as server:
            row, wrong = uvloop.run(_measure(server, devices, first, options))
        first = first or row
        faults += wrong
        print(tables.line(COLUMNS, row), flush=True)
    return 1 if faults else 0


async def _measure(server: Serving, devices: int, first: Row | None, options: argparse.Namespace) -> tuple[Row, int]:
    target = Target(f"{server.url}/classify")
    _, sent = await loops.ask_alone(target, [path.read_bytes() for path in photos.find(options.photos)])
    connections = BATCHES * devices * options.max_batch
    window = await loops.closed_loop(target, sent, connections, options.warm_up, options.seconds, lambda: _read(server))
    for fault in window.faults:
        print(f"error: {fault}", file=sys.stderr)
    images = len(window.latencies_s)
    before, after = window.before, window.after
    meters = after.meters.since(before.meters)
    per_s = images / window.seconds
    row = Row(
        devices,
        per_s,
        per_s * first.devices / (first.per_s * devices) if first else None,
        harmonic_mean(window.batch_sizes),  # a batch of n is reported n times
        1e3 * (after.http_s - before.http_s) / images,
        1e3 * (after.decode_s - before.decode_s) / images,
        1e3 * (after.engines_s - before.engines_s) / images,
        1e3 * meters.client / images,
        meters.machine / (window.seconds * (psutil.cpu_count() or 1)),
    )
    return row, window.faults.total()


def _read(server: Serving) -> _Readings:
    cpu_s = {name: cpu_s_by_thread(psutil.Process(pid)) for name, pid in server.children.items()}
    workers = [used for name, used in cpu_s.items() if name.startswith("http")]
    engines_s = sum(sum(used) for name, used in cpu_s.items() if name.startswith("engine"))
    return _Readings(sum(loop for loop, _ in workers), sum(others for _, others in workers), engines_s, read_meters(()))


def _parse() -> argparse.Namespace:
    parser = command.parser("devices.py", __doc__, seconds=10, warm_up=2)
    parser.add_argument("--devices", type=numbers(int), default=[1, 2, 4, 8], metavar="N,N,…", help="default 1,2,4,8")
    parser.add_argument("--per-s", type=float, default=50, metavar="R", help="images, of one device (default 50)")
    parser.add_argument("--max-batch", type=int, default=8, metavar="N", help="default 8")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main))
