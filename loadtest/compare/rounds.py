"""Rounds in which every server runs once, alone. The baseline is measured before and after each."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean

import uvloop

from loadtest import loops, machine, processes
from loadtest.command import LoadTestError
from loadtest.compare.networks import Work
from loadtest.compare.rows import Around, Key, Measured, Row
from loadtest.compare.servers import Server
from loadtest.connection import connect, request
from loadtest.loops import Photo, Target
from loadtest.processes import POLL_S, ROOT, Running, StartError
from loadtest.responses import WrongAnswerError
from loadtest.results import Baseline, Figures
from loadtest.turns import in_turns

START_S = 180.0
"""Time limit for a server to start and give its first right answer."""
ANSWER_S = 20.0
"""Time limit for one answer while a server starts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure."""

    photos: Sequence[Path]
    connections: Sequence[int]
    rounds: int
    seconds: float
    warm_up_s: float
    baseline_s: float
    begun: datetime


@dataclass(frozen=True, slots=True)
class _Started:
    """A server that gave its first answers."""

    start_s: float
    photos: list[Photo]
    same_class: float


def runs(servers: Sequence[Server], works: Sequence[Work]) -> list[tuple[Work, Server]]:
    """What is measured in each round."""
    return [(work, server) for work in works for server in servers if server.can_run(work)]


def measure(servers: Sequence[Server], works: Sequence[Work], plan: Plan, done: Set[Key]) -> Iterator[Row]:
    """Measure what is not done yet, in turns."""
    references = {work.name: _reference(work, plan.photos) for work in works}
    before: tuple[str, Baseline | None] = "", None  # the work, and its last baseline
    for number, (work, server) in in_turns(runs(servers, works), plan.rounds):
        key = Key(work.name, server.name, server.variant, 0, number)
        loads = [load for load in plan.connections if key._replace(connections=load) not in done]
        if not loads:
            continue
        if before[0] != work.name:
            before = work.name, _baseline(work, plan)
        found = _run(server, work, loads, references[work.name], plan)
        after = work.name, _baseline(work, plan)
        around = _around([before[1], after[1]])
        for load in loads:
            outcome = found[load]
            yield Row(
                **key._replace(connections=load)._asdict(),
                run=plan.begun,
                seconds=plan.seconds,
                baseline=around,
                measured=outcome if isinstance(outcome, Measured) else None,
                failure=outcome if isinstance(outcome, str) else None,
            )
        before = after


def _reference(work: Work, photos: Sequence[Path]) -> list[int]:
    """The best class of each photo, computed by the rivals' code without a server."""
    described = json.dumps({"network": str(work.network), "tuned": True, **work.preprocessing})
    command = [sys.executable, "-m", "loadtest.compare.rivals.work", *map(str, photos)]
    environment = {**os.environ, "COMPARE_WORK": described}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)  # noqa: S603
    return [json.loads(line)["classes"][0] for line in done.stdout.splitlines()]


def _baseline(work: Work, plan: Plan) -> Baseline | None:
    return machine.baseline(work.name, work.repository, plan.photos, plan.baseline_s)


def _around(baselines: Sequence[Baseline | None]) -> Around | None:
    known = [baseline for baseline in baselines if baseline]
    if not known:
        return None
    return Around(
        images_per_s=mean(one.images_per_s for one in known),
        cpu_ms=mean(one.cpu_ms for one in known),
        lone_ms=mean(one.lone_ms for one in known),
    )


def _run(
    server: Server, work: Work, loads: Sequence[int], reference: Sequence[int], plan: Plan
) -> dict[int, Measured | str]:
    """What was measured under each load, or why nothing was."""
    with serving(server, work) as (running, target):
        return uvloop.run(_load(running, target, loads, reference, plan))


@contextmanager
def serving(server: Server, work: Work) -> Generator[tuple[Running, Target]]:
    """Start a server, and say where it will answer.

    Raises:
        InstallError: a rival cannot be installed.
    """
    port = _free_port()
    command, variables = server.command(work, port)
    variables["PYTHONPATH"] = str(ROOT)
    # a short path: in the paths of its sockets, Ray leaves room for only some forty characters of it
    with (
        tempfile.TemporaryDirectory(prefix="compare-", ignore_cleanup_errors=True) as folder,
        processes.start(command, variables, Path(folder)) as running,
    ):
        yield running, server.target(port)


async def _load(
    running: Running, target: Target, loads: Sequence[int], reference: Sequence[int], plan: Plan
) -> dict[int, Measured | str]:
    try:
        started = await _started(running, target, reference, plan)
    except (LoadTestError, OSError) as error:
        return dict.fromkeys(loads, f"{error!r} {running.log_tail()}")
    found: dict[int, Measured | str] = {}
    for load in loads:
        try:
            found[load] = await _step(running, target, started, load, plan)
        except (LoadTestError, OSError) as error:
            found[load] = f"{error!r} {running.log_tail()}"
    return found


async def _started(running: Running, target: Target, reference: Sequence[int], plan: Plan) -> _Started:
    """Wait for the first answer, then send each photo once, alone."""
    images = [path.read_bytes() for path in plan.photos]
    await first_answer(running, target, request(target.url, images[0], target.headers))
    start_s = time.monotonic() - running.started_s
    _, found = await loops.ask_alone(target, images)
    return _Started(start_s, found, mean(photo.top1 == top1 for photo, top1 in zip(found, reference, strict=True)))


async def first_answer(running: Running, target: Target, content: bytes) -> None:
    """Wait for the first answer of a server that is starting.

    Raises:
        StartError: it ended, or took longer than START_S.
    """
    give_up_s = time.monotonic() + START_S
    while True:
        try:
            async with asyncio.timeout(ANSWER_S), connect(target.url) as connection:
                target.parse(*await connection.ask(content))
        except (WrongAnswerError, OSError) as error:
            if running.has_ended or time.monotonic() > give_up_s:
                raise StartError(f"it does not start; at last: {error!r} {running.log_tail()}") from error
        else:
            return
        await asyncio.sleep(POLL_S)


async def _step(running: Running, target: Target, started: _Started, load: int, plan: Plan) -> Measured:
    window = await loops.closed_loop(
        target, started.photos, load, plan.warm_up_s, plan.seconds, lambda: machine.read_meters(running.members())
    )
    members = running.members()
    return Measured(
        **Figures.of(window).model_dump(),
        memory_mb=processes.pss_bytes(members) / 2**20,
        processes=len(members),
        start_s=started.start_s,
        same_class=started.same_class,
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
