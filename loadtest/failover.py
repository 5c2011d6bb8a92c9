"""`python loadtest/failover.py --engines 1,2`: how long clients wait when an engine is killed.

Starts a server with that many engines of one thread each, sends requests at a constant rate (Poisson) whatever is still
unanswered, and kills one engine after another with SIGKILL, far enough apart that each restart is immediate. Prints the
latencies of the requests that were due shortly before or after a kill ("met") beside those of the others ("calm").
Exits with 1 if a request is lost, refused or answered wrongly.
"""

import models.missing  # noqa: F401 before what may be missing

# isort: split

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import uvloop

from loadtest import command, loops, photos, processes, tables
from loadtest.command import LoadTestError, numbers
from loadtest.loops import OpenLoop, Outcomes, Target, poisson
from loadtest.processes import Serving
from loadtest.results import percentiles_ms
from loadtest.tables import decimal

BEFORE_S, AFTER_S = 0.1, 0.5
"""A request that was due within this time of a kill was under way then, or found an engine missing."""
BACK_S = 60.0
"""An engine that has not come back by then has failed for good."""
DEADLINE_S = 30.0
"""Far beyond any pause, so that its whole length is measured."""


class Row(NamedTuple):
    """What was measured with one number of engines."""

    engines: int
    kills: int
    met: Sequence[float]
    calm: Sequence[float]
    """seconds from when each request was due to its answer"""


COLUMNS: tables.Columns[Row] = {
    "engines": lambda row: str(row.engines),
    "kills": lambda row: str(row.kills),
    "met": lambda row: str(len(row.met)),
    "p50 ms": lambda row: decimal(percentiles_ms(row.met, 50)[0]),
    "p99 ms": lambda row: decimal(percentiles_ms(row.met, 99)[0]),
    "most ms": lambda row: decimal(percentiles_ms(row.met, 100)[0]),
    "calm": lambda row: str(len(row.calm)),
    "calm p50 ms": lambda row: decimal(percentiles_ms(row.calm, 50)[0]),
    "calm p99 ms": lambda row: decimal(percentiles_ms(row.calm, 99)[0]),
    "calm most ms": lambda row: decimal(percentiles_ms(row.calm, 100)[0]),
}


def main() -> int:
    """Measure each number of engines; returns 0 if nothing was lost."""
    options = _parse()
    print(tables.line(COLUMNS, None), flush=True)
    faults: Counter[str] = Counter()
    for engines in options.engines:
        flags = ["--repository", options.repository, "--engines", engines, "--inference-threads", 1]
        flags += ["--models", options.model] if options.model else []
        with processes.serve(*map(str, flags), quiet=True) as server:
            row = uvloop.run(_measure(server, engines, options, faults))
        print(tables.line(COLUMNS, row), flush=True)
    for fault, count in faults.items():
        print(f"error: {count} times {fault}", file=sys.stderr)
    return 1 if faults else 0


async def _measure(server: Serving, engines: int, options: argparse.Namespace, faults: Counter[str]) -> Row:
    target = Target(f"{server.url}/classify")
    _, sent = await loops.ask_alone(target, [path.read_bytes() for path in photos.find(options.photos)])
    outcomes: defaultdict[float, Outcomes] = defaultdict(Outcomes)  # by when the requests were due
    kills: list[float] = []
    over = asyncio.Event()
    loop, started_s = OpenLoop(target, sent, DEADLINE_S, options.connections), time.perf_counter()
    due = takewhile(lambda _: not over.is_set(), poisson(options.rate, random.Random(0)))  # noqa: S311
    sending = asyncio.create_task(loop.send(due, outcomes.__getitem__))
    try:
        for turn in range(options.kills):
            await asyncio.sleep(options.every)
            names = sorted(name for name in server.children if name.startswith("engine"))
            name = names[turn % len(names)]
            kills.append(time.perf_counter() - started_s)
            await _kill(server, name)
        await asyncio.sleep(options.every)
    finally:
        over.set()
        await sending
    met: list[float] = []
    calm: list[float] = []
    for at_s, outcome in outcomes.items():
        near = any(-BEFORE_S <= at_s - kill_s <= AFTER_S for kill_s in kills)
        (met if near else calm).extend(outcome.good_s)
        faults += _lost(outcome)
    faults += loop.faults
    return Row(engines, len(kills), met, calm)


def _lost(outcome: Outcomes) -> Counter[str]:
    """What became of requests without a right answer in time, except what the loop itself reports as faults."""
    found = Counter({code: len(latencies) for code, latencies in outcome.refused_s.items()})
    return found + Counter(
        {f"no answer within {DEADLINE_S:g} s": len(outcome.late_s), "no free socket": outcome.unsent}
    )


async def _kill(server: Serving, name: str) -> None:
    """Kill a process and wait for its successor.

    Raises:
        LoadTestError: there is none within BACK_S.
    """
    killed = server.children[name]
    os.kill(killed, signal.SIGKILL)
    try:
        async with asyncio.timeout(BACK_S):
            while server.children.get(name, killed) == killed:  # noqa: ASYNC110 only a file tells
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise LoadTestError(f"{name} does not come back:\n{server.running.log_tail()}") from None


def _parse() -> argparse.Namespace:
    parser = command.parser("failover.py", __doc__)
    parser.add_argument("--engines", type=numbers(int), default=[1, 2], metavar="N,N,…", help="default 1,2")
    parser.add_argument("--rate", type=float, default=50, metavar="R", help="requests a second (default 50)")
    parser.add_argument("--connections", type=int, default=64, metavar="N", help="requests at one time (default 64)")
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="default 10")
    parser.add_argument(
        "--every", type=float, default=12, metavar="S", help="from a recovery to the next kill (default 12)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main))
