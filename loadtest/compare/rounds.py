"""Rounds in which every server runs once, alone: started, asked, loaded, ended. Before and after each, the limit."""

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

import numpy as np
import psutil
import uvloop

from loadtest import client, machine
from loadtest.answers import WrongAnswerError
from loadtest.client import ClosedLoop, Photo
from loadtest.compare import processes
from loadtest.compare.networks import ROOT, Work
from loadtest.compare.processes import Running
from loadtest.compare.rows import Key, Limits, Measured, Row
from loadtest.compare.servers import Server
from loadtest.machine import Limit

START_S = 180.0
"""What a server is given until its first right answer."""
ANSWER_S = 20.0
"""What it is given for one answer while it starts."""
_POLL_S = 0.02
_MOST_FAULTS = 5
"""Kept of those that differ; each may name its own request."""


class ServerError(Exception):
    """A server does not do its work; the message says what it did."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure."""

    photos: Sequence[Path]
    connections: Sequence[int]
    rounds: int
    seconds: float
    warm_up_s: float
    limit_s: float
    begun: datetime
    environments: Path


@dataclass(frozen=True, slots=True)
class _Started:
    """A server that gave its first answers."""

    url: str
    start_s: float
    photos: list[Photo]
    same_class: float


def keys(servers: Sequence[Server], works: Sequence[Work], plan: Plan) -> list[Key]:
    """All that there is to measure."""
    return [
        Key(work.name, server.name, server.variant, connections, number)
        for number in range(plan.rounds)
        for work in works
        for server in servers
        if server.can_run(work)
        for connections in plan.connections
    ]


def measure(servers: Sequence[Server], works: Sequence[Work], plan: Plan, done: Set[Key]) -> Iterator[Row]:
    """Measure what is not done yet.

    Servers take turns, forwards in one round and backwards in the next, so that a machine that slows down slows all.
    """
    references = {work.name: _reference(work, plan.photos) for work in works}
    for number in range(plan.rounds):
        for work in works:
            before: Limit | None = None
            for server in servers[:: -1 if number % 2 else 1]:
                key = Key(work.name, server.name, server.variant, 0, number)
                loads = [load for load in plan.connections if key._replace(connections=load) not in done]
                if loads and server.can_run(work):
                    before = before or _limit(work, plan)
                    found = _run(server, work, loads, references[work.name], plan)
                    after = _limit(work, plan)
                    limits = _limits([before, after])
                    for load in loads:
                        outcome = found[load]
                        yield Row(
                            **key._replace(connections=load)._asdict(),
                            run=plan.begun,
                            seconds=plan.seconds,
                            limits=limits,
                            measured=outcome if isinstance(outcome, Measured) else None,
                            failure=outcome if isinstance(outcome, str) else None,
                        )
                    before = after


def _reference(work: Work, photos: Sequence[Path]) -> list[int]:
    """The best class of each photo by what the rivals run, without a server."""
    described = json.dumps({"network": str(work.network), "tuned": True, **work.preprocessing})
    command = [sys.executable, "-m", "loadtest.compare.rivals.work", *map(str, photos)]
    environment = {**os.environ, "COMPARE_WORK": described}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)  # noqa: S603
    return [json.loads(line)["classes"][0] for line in done.stdout.splitlines()]


def _limit(work: Work, plan: Plan) -> Limit | None:
    return machine.limit(work.name, work.repository, plan.photos, plan.limit_s)


def _limits(around: Sequence[Limit | None]) -> Limits | None:
    known = [limit for limit in around if limit]
    if not known:
        return None
    return Limits(
        images_per_s=mean(limit["images_per_s"] for limit in known),
        cpu_ms=mean(1e3 * limit["cpus"] / limit["images_per_s"] for limit in known),
        lone_ms=mean(limit["lone_ms"] for limit in known),
    )


def _run(
    server: Server, work: Work, loads: Sequence[int], reference: Sequence[int], plan: Plan
) -> dict[int, Measured | str]:
    """What was measured under each load, or why nothing was."""
    with serving(server, work, plan.environments) as (running, url):
        return uvloop.run(_load(server, running, url, loads, reference, plan))


@contextmanager
def serving(server: Server, work: Work, environments: Path) -> Generator[tuple[Running, str]]:
    """A server that starts, and where it will answer.

    Raises:
        InstallError: a rival cannot be installed.
    """
    port = _free_port()
    command, variables = server.command(work, port, environments)
    variables["PYTHONPATH"] = str(ROOT)
    # a short path: Ray's sockets have room for some forty letters more
    with (
        tempfile.TemporaryDirectory(prefix="compare-", ignore_cleanup_errors=True) as folder,
        processes.start(command, variables, Path(folder), ROOT) as running,
    ):
        yield running, f"http://127.0.0.1:{port}{server.path}"


async def _load(
    server: Server, running: Running, url: str, loads: Sequence[int], reference: Sequence[int], plan: Plan
) -> dict[int, Measured | str]:
    try:
        started = await _started(server, running, url, reference, plan)
    except (ServerError, WrongAnswerError, OSError, EOFError) as error:
        return dict.fromkeys(loads, f"{error!r} {running.log_tail()}")
    found: dict[int, Measured | str] = {}
    for load in loads:
        try:
            found[load] = await _step(server, running, started, load, plan)
        except (ServerError, OSError) as error:
            found[load] = f"{error!r} {running.log_tail()}"
    return found


async def _started(server: Server, running: Running, url: str, reference: Sequence[int], plan: Plan) -> _Started:
    """Wait for the first answer, then send each photo once, alone: what it is found to be must not change."""
    requests = [client.request(url, path.read_bytes(), server.headers) for path in plan.photos]
    await first_answer(server, running, url, requests[0])
    start_s = time.monotonic() - running.started_s
    async with client.connect(url, server.parse) as ask:
        found = [Photo(request, (await ask(request)).top1) for request in requests]
    same = [photo.top1 == top1 for photo, top1 in zip(found, reference, strict=True)]
    return _Started(url, start_s, found, mean(same))


async def first_answer(server: Server, running: Running, url: str, request: bytes) -> None:
    """Wait until a server that starts has answered.

    Raises:
        ServerError: it ended, or takes too long.
    """
    give_up_s = time.monotonic() + START_S
    while True:
        try:
            async with asyncio.timeout(ANSWER_S), client.connect(url, server.parse) as ask:
                await ask(request)
        except (WrongAnswerError, OSError, EOFError) as error:
            if running.has_ended or time.monotonic() > give_up_s:
                raise ServerError(f"it does not start; at last: {error!r}") from error
        else:
            return
        await asyncio.sleep(_POLL_S)


async def _step(server: Server, running: Running, started: _Started, load: int, plan: Plan) -> Measured:
    loop = ClosedLoop(started.url, started.photos, server.parse)
    window = await loop.run(load, plan.warm_up_s, plan.seconds, lambda: machine.read_meters(running.members()))
    images = len(window.latencies_s)
    if not images:
        raise ServerError(f"no answers: {dict(window.faults)}")
    used = window.after.since(window.before)
    p50_s, p99_s = np.percentile(window.latencies_s, (50, 99)).tolist()
    cpus_s = window.seconds * (psutil.cpu_count() or 1)
    return Measured(
        images_per_s=images / window.seconds,
        p50_ms=1e3 * p50_s,
        p99_ms=1e3 * p99_s,
        cpu_ms=1e3 * used.server / images,
        memory_mb=running.memory_mb(),
        processes=len(running.members()),
        start_s=started.start_s,
        same_class=started.same_class,
        errors=window.faults.total(),
        faults=dict(window.faults.most_common(_MOST_FAULTS)),
        client_cpu_ms=1e3 * used.client / images,
        others_share=max(0.0, used.machine - used.server - used.client) / cpus_s,
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
