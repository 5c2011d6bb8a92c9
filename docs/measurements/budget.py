"""Where the time of an image goes: CPU time by thread, and wall time by stage; prints the tables of budget.md.

    python docs/measurements/budget.py REPOSITORY PHOTOS MODEL [MODEL ...]

Each model in a server of its own, under a closed loop of 32 connections, with the photos as bodies and as forms. CPU
time is what Linux counts for each thread, wall time what the server's own histograms say.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import psutil
import uvloop

from loadtest import loops, photos, processes
from loadtest.connection import JPEG
from loadtest.loops import Target
from loadtest.machine import cpu_s_by_thread
from loadtest.processes import Serving

CONNECTIONS, WARM_UP_S, SECONDS = 32, 2.0, 10.0
THREADS = ("HTTP loop", "decoding", "engine loop", "inference", "the rest")
STAGES = ("decode_wait", "decode", "queue", "inference", "request")
_STAGE = re.compile(r"^serving_(\w+)_seconds_(sum|count)\{.*\} (\S+)$", re.MULTILINE)


class Reading(NamedTuple):
    """What is known of a server at one moment."""

    cpu_s: Mapping[str, float]
    """by THREADS"""
    stages: Mapping[str, float]
    """sums and counts of its histograms"""


def main() -> None:
    """Measure each model and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("models", nargs="+")
    asked = parser.parse_args()
    images = [path.read_bytes() for path in photos.find(asked.photos)]
    ways = {
        "body": (images, JPEG),
        "form": ([photos.form(image) for image in images], {"Content-Type": photos.FORM_TYPE}),
    }
    print(f"| CPU-ms an image | images/s | {' | '.join(THREADS)} | all |\n|{' --- |' * (len(THREADS) + 3)}")
    stages: list[str] = []
    for model in asked.models:
        with processes.serve("--repository", str(asked.repository), "--models", model, quiet=True) as server:
            for way, (bodies, headers) in ways.items():
                cpu_ms, wall_ms, per_s = uvloop.run(_measure(server, bodies, headers))
                print(_row(f"{model}, {way}", f"{per_s:.0f}", [*cpu_ms, sum(cpu_ms)], 2), flush=True)
                stages.append(_row(f"{model}, {way}", None, [*wall_ms, wall_ms[-1] - sum(wall_ms[:-1])], 1))
    print(f"\n| wall ms | {' | '.join(STAGES)} | in none of the stages |\n|{' --- |' * (len(STAGES) + 2)}")
    print("\n".join(stages))


def _row(name: str, rate: str | None, values: Sequence[float], digits: int) -> str:
    cells = [name, *([rate] if rate else []), *(f"{value:.{digits}f}" for value in values)]
    return f"| {' | '.join(cells)} |"


async def _measure(
    server: Serving, bodies: Sequence[bytes], headers: Mapping[str, str]
) -> tuple[list[float], list[float], float]:
    """CPU and wall milliseconds of an image, by THREADS and STAGES, and images a second."""
    target = Target(f"{server.url}/classify", headers)
    _, sent = await loops.ask_alone(target, bodies)
    window = await loops.closed_loop(target, sent, CONNECTIONS, WARM_UP_S, SECONDS, lambda: _read(server))
    if window.faults:
        raise SystemExit(f"error: {window.faults}")
    before, after, done = window.before, window.after, len(window.latencies_s)
    cpu_ms = [1e3 * (after.cpu_s[name] - before.cpu_s[name]) / done for name in THREADS]
    spent = {name: value - before.stages[name] for name, value in after.stages.items()}
    return cpu_ms, [1e3 * spent[f"{stage}_sum"] / spent[f"{stage}_count"] for stage in STAGES], done / window.seconds


def _read(server: Serving) -> Reading:
    cpu_s: dict[str, float] = defaultdict(float)
    for each in server.members():
        name = _role(each)
        others = THREADS[THREADS.index(name) + (name != "the rest")]
        for thread, used_s in zip((name, others), cpu_s_by_thread(each), strict=True):
            cpu_s[thread] += used_s
    with urlopen(f"{server.url}/metrics") as answer:  # noqa: S310
        text = answer.read().decode()
    stages: dict[str, float] = defaultdict(float)
    for stage, kind, value in _STAGE.findall(text):
        stages[f"{stage}_{kind}"] += float(value)
    return Reading(cpu_s, stages)


def _role(process: psutil.Process) -> str:
    """What a process' first thread does; its others decode, or infer."""
    names = {"http": "HTTP loop", "engine": "engine loop"}
    return next((name for start, name in names.items() if process.name().startswith(start)), "the rest")


if __name__ == "__main__":
    main()
