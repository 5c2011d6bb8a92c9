"""`python loadtest/many_models.py`: many models, of which only a few fit into memory.

Serves copies of one model under many names, with one budget after another: `all` of them loaded, a number of models,
or bytes of memory. Clients in a closed loop pick models at random by Zipf's law: the n-th name has a weight of 1/n^s.
Prints how long the server took to start; how many requests were answered, and which share of them found their model
loaded; how long loads and answers took; and the peak memory of the engine's models, both as the engine measures it and
as the growth of its process since it was ready with only the default model. Exits with 1 if a request is lost, refused
or answered wrongly.

    python loadtest/many_models.py --repository FOLDER --model NAME --copies 200 --budgets 20,100MB,all
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import argparse
import random
import re
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import uvloop

from loadtest import command, copies, loops, photos, processes, tables
from loadtest.connection import request
from loadtest.loops import Photo, Target
from loadtest.processes import Serving
from loadtest.results import percentiles_ms
from loadtest.tables import decimal, percent

DRAWN = 50_000
"""Requests drawn in advance; the loop repeats them."""
SAMPLE_S = 0.05
_SAMPLE = re.compile(r"^(\w+)(?:{(.*)})? (\S+)$", re.MULTILINE)
_BOUND = re.compile(r'le="([^"]+)"')
_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)


class Row(NamedTuple):
    """One budget."""

    budget: str
    start_s: float
    latencies_s: Sequence[float]
    hits: float
    loads: float
    load_p50_s: float
    load_p99_s: float
    models_bytes: float
    grown_bytes: float


COLUMNS: tables.Columns[Row] = {
    "budget": lambda row: row.budget,
    "start s": lambda row: decimal(row.start_s),
    "answers": lambda row: str(len(row.latencies_s)),
    "hits": lambda row: percent(row.hits),
    "loads": lambda row: f"{row.loads:.0f}",
    "load p50 ms": lambda row: decimal(row.load_p50_s * 1e3),
    "load p99 ms": lambda row: decimal(row.load_p99_s * 1e3),
    "p50 ms": lambda row: decimal(percentiles_ms(row.latencies_s, 50)[0]),
    "p99 ms": lambda row: decimal(percentiles_ms(row.latencies_s, 99)[0]),
    "models MB": lambda row: decimal(row.models_bytes / 1e6),
    "grown MB": lambda row: decimal(row.grown_bytes / 1e6),
}


class Metrics(NamedTuple):
    """The server's counters."""

    waits: float
    loads: Mapping[float, float]
    """how many loads took at most this many seconds"""

    @classmethod
    def read(cls, url: str) -> "Metrics":
        """Read their current values."""
        with urlopen(f"{url}/metrics") as answer:  # noqa: S310
            samples = _SAMPLE.findall(answer.read().decode())
        loads = [(labels, value) for name, labels, value in samples if name == "serving_model_load_seconds_bucket"]
        return cls(
            sum(float(value) for name, _, value in samples if name == "serving_model_wait_seconds_count"),
            {float(_BOUND.findall(labels)[0]): float(value) for labels, value in loads},
        )


def main() -> int:
    """Measure each budget; 0: nothing was lost."""
    options = _parse()
    print(tables.line(COLUMNS, None), flush=True)
    faults: Counter[str] = Counter()
    with copies.made(options.repository, options.model, options.copies) as (repository, names):
        for budget in options.budgets:
            flags = ["--repository", str(repository), "--default-model", names[0], *_flags(budget)]
            started_s = time.monotonic()
            with processes.serve(*flags, quiet=True) as server:
                start_s = time.monotonic() - started_s
                row = uvloop.run(_measure(server, budget, start_s, names, options, faults))
            print(tables.line(COLUMNS, row), flush=True)
    for fault, count in faults.items():
        print(f"error: {count} times {fault}", file=sys.stderr)
    return 1 if faults else 0


async def _measure(
    server: Serving,
    budget: str,
    start_s: float,
    names: Sequence[str],
    options: argparse.Namespace,
    faults: Counter[str],
) -> Row:
    images = [path.read_bytes() for path in photos.find(options.photos)]
    url = f"{server.url}/classify"
    with _watched(server) as memory:
        _, sent = await loops.ask_alone(Target(url), images)
        chance = random.Random(0)  # noqa: S311
        weights = [1 / number**options.zipf for number in range(1, len(names) + 1)]
        drawn = [
            Photo(request(f"{url}?{urlencode({'model': name})}", images[at]), sent[at].top1)
            for name in chance.choices(names, weights, k=DRAWN)
            for at in [chance.randrange(len(images))]
        ]
        window = await loops.closed_loop(
            Target(url), drawn, options.connections, options.warm_up, options.seconds, lambda: Metrics.read(server.url)
        )
    faults.update(window.faults)
    before, after = window.before, window.after
    loads = {bound: count - before.loads.get(bound, 0) for bound, count in after.loads.items()}
    hits = 1 - (after.waits - before.waits) / max(1, len(window.latencies_s))
    p50_s, p99_s = (_quantile(loads, share) for share in (0.5, 0.99))
    return Row(budget, start_s, window.latencies_s, hits, max(loads.values(), default=0), p50_s, p99_s, *memory)


def _quantile(counts: Mapping[float, float], share: float) -> float:
    """Quantile of a cumulative histogram, interpolated between two bounds as in Prometheus."""
    bounds = sorted(counts)
    at = bisect_left([counts[bound] for bound in bounds], share * max(counts.values(), default=0))
    if not bounds or not counts[bounds[at]]:
        return 0.0
    low, below = (bounds[at - 1], counts[bounds[at - 1]]) if at else (0.0, 0.0)
    part = (share * counts[bounds[-1]] - below) / (counts[bounds[at]] - below)
    return low + part * (min(bounds[at], bounds[-2]) - low)


@contextmanager
def _watched(server: Serving) -> Generator[list[float]]:
    """Peak bytes until the block ends: of the models as the engine measures them, and by the growth of its process."""
    most, over = [0.0, 0.0], threading.Event()
    status = Path(f"/proc/{server.children['engine']}/status")

    def look() -> float:
        with suppress(OSError):  # where there is no such file
            return int(_ANONYMOUS.findall(status.read_text())[0]) * 1024.0
        return 0.0

    def measured() -> float:
        with urlopen(f"{server.url}/metrics") as answer:  # noqa: S310
            found = re.findall(r"^serving_model_memory_bytes{.*} (\S+)$", answer.read().decode(), re.MULTILINE)
        return sum(map(float, found))

    start_bytes, of_default_bytes = look(), measured()

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            most[:] = max(most[0], measured()), max(most[1], look() - start_bytes + of_default_bytes)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        over.set()
        watching.join()


def _flags(budget: str) -> list[str]:
    if budget == "all":
        return []
    return ["--max-loaded" if budget.isdecimal() else "--memory-budget", budget]


def _parse() -> argparse.Namespace:
    parser = command.parser("many_models.py", __doc__, seconds=20, warm_up=2)
    parser.add_argument("--copies", type=int, default=200, metavar="N", help="of the model (default 200)")
    text = "all, a number of models, or bytes, such as 100MB (default 20)"
    parser.add_argument("--budgets", type=lambda given: given.split(","), default=["20"], metavar="B,B,…", help=text)
    parser.add_argument("--zipf", type=float, default=1.0, metavar="S", help="exponent of Zipf's law (default 1)")
    parser.add_argument("--connections", type=int, default=8, metavar="N", help="default 8")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main))
