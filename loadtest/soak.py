"""`python loadtest/soak.py --minutes 30`: constant trouble, through which nothing may be lost.

Starts a server on a copy of a model repository, sends it valid and invalid requests all the time, and every few seconds
kills an engine or an HTTP worker, or publishes a new version and removes the old one. Each request must get the right
answer: a photo's class, or the problem document for what is wrong with the request. While something restarts, the
server may also refuse a request and say when to retry; such requests are sent again, as are those on connections that
broke with a killed worker. Memory must not grow. Exits with 1 if any of this fails.
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import psutil

from loadtest import command, invalid_requests, photos, plots, processes, report, responses
from loadtest.command import LoadTestError
from loadtest.connection import Connection, connect, request
from loadtest.loops import poisson
from loadtest.processes import Serving
from loadtest.report import Verdict
from loadtest.responses import WrongAnswerError
from loadtest.sampling import Sample, Sampler

ATTEMPTS = 20
"""A request counts as lost after this many refusals and broken connections."""
ANSWER_S = 60.0
"""A request counts as lost if no answer comes in this time, which is twice the server's `timeout_ms`."""
REFUSED_WHILE_RESTARTING = {(503, "engine_unavailable"), (429, "queue_full")}
MOST_GROWTH = 0.05
"""How much the trend of memory may add between the warm-up and the end, as a share."""
WARM_UP = 0.15
"""Share of the run after which caches, pools and arenas have reached their sizes."""
SAMPLE_S = 2.0
LEAVER_EVERY = 40
"""In one of this many requests, the client disconnects as soon as it has sent it."""
PATIENCE_S = 120.0
POLL_S = 0.05
MOST_FAULTS = 20
"""How many distinct faults are kept."""
COLOURS = {"engine killed": "red", "worker killed": "orange", "reloaded": "green"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A request and its one right answer: status and code, or the class of a photo."""

    name: str
    content: bytes
    status: int
    due: str | int


@dataclass(slots=True)
class Outcomes:
    """Counts; only samples and events grow with the length of the run."""

    answered: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    """attempts that were repeated, by reason"""
    left: int = 0
    lost: int = 0
    wrong: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, Sample]] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Count a fault; after MOST_FAULTS distinct ones, new ones are ignored."""
        if text in self.faults or len(self.faults) < MOST_FAULTS:
            self.faults[text] += 1


def main() -> int:
    """Run the soak and write its report; 0: every promise was kept."""
    options = _parse()
    with _server(options) as (server, repository):
        outcomes = asyncio.run(_soak(server, repository, options))
    return _report(outcomes, options)


@contextmanager
def _server(options: argparse.Namespace) -> Generator[tuple[Serving, Path]]:
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        repository = Path(folder) / "repository"
        shutil.copytree(options.repository / options.model, repository / options.model)
        flags = ["--repository", str(repository), "--http-workers", "2", "--reload-ms", "500"]
        flags += ["--engines", str(options.engines)]
        with processes.serve(*flags, quiet=True) as server:
            yield server, repository


async def _soak(server: Serving, repository: Path, options: argparse.Namespace) -> Outcomes:
    url = f"{server.url}/classify"
    outcomes = Outcomes()
    kinds = await _first_answers(url, [path.read_bytes() for path in photos.find(options.photos)])
    started_s = time.monotonic()
    stop = asyncio.Event()
    senders = [
        asyncio.create_task(_send(url, kinds, options.rate / options.connections, number, outcomes, stop))
        for number in range(options.connections)
    ]
    watch = asyncio.create_task(_watch(server, started_s, outcomes, stop))
    trouble = cycle(_troubles(server, repository, options.model))
    try:
        while time.monotonic() - started_s < 60 * options.minutes:
            await asyncio.sleep(options.every)
            name, make = next(trouble)
            outcomes.events.append((time.monotonic() - started_s, name))
            await asyncio.to_thread(make)
    finally:
        stop.set()
        await asyncio.gather(*senders, watch)
    return outcomes


async def _first_answers(url: str, images: Sequence[bytes]) -> list[Kind]:
    """Every kind of request. Each photo is sent once, undisturbed, to learn the class that it must keep."""
    learned: list[Kind] = []
    async with connect(url) as connection:
        for image in images:
            content = request(url, image, {})
            learned.append(Kind("photo", content, 200, responses.parse(*await connection.ask(content)).top1))
    bad = [
        Kind(one.name, request(url + one.query, one.body, {}), one.status, one.code)
        for one in invalid_requests.of(images[0])
    ]
    return [kind for one in learned for kind in (one, one, one)] + bad


async def _send(
    url: str, kinds: Sequence[Kind], per_s: float, number: int, outcomes: Outcomes, stop: asyncio.Event
) -> None:
    """One client: sends one request at a time until it is answered; those that fall due meanwhile are sent late."""
    chance = random.Random(number)  # noqa: S311
    started_s = time.monotonic()
    for due_s in poisson(per_s, random.Random(number)):  # noqa: S311
        await asyncio.sleep(max(0.0, started_s + due_s - time.monotonic()))
        if stop.is_set():
            return
        kind = chance.choice(kinds)
        if chance.randrange(LEAVER_EVERY) == 0:
            await _leave(url, kind.content, outcomes)
        else:
            await _until_answered(url, kind, outcomes)


async def _until_answered(url: str, kind: Kind, outcomes: Outcomes) -> None:
    for _ in range(ATTEMPTS):
        try:
            # A new connection for each attempt, so that a restarted worker gets its share of the load.
            async with asyncio.timeout(ANSWER_S), connect(url) as connection:
                status, body = await connection.ask(kind.content)
        except TimeoutError:
            outcomes.lost += 1
            outcomes.fault(f"{kind.name}: no answer in {ANSWER_S:g} s")
            return
        except OSError as error:
            outcomes.again[f"connection broken ({type(error).__name__})"] += 1
            await asyncio.sleep(0.2)
            continue
        code = responses.code(body)
        if (status, code) in REFUSED_WHILE_RESTARTING:
            outcomes.again[code] += 1
            await asyncio.sleep(1)
            continue
        found = _found(status, body, code)
        if (status, found) == (kind.status, kind.due):
            outcomes.answered[kind.name] += 1
        else:
            outcomes.wrong += 1
            outcomes.fault(f"{kind.name}: {status} {found} instead of {kind.status} {kind.due}")
        return
    outcomes.lost += 1
    outcomes.fault(f"{kind.name}: refused or cut off {ATTEMPTS} times")


def _found(status: int, body: bytes, code: str) -> int | str:
    """The class of a photo, the code of an error, or what else the answer is."""
    try:
        return responses.parse(status, body).top1
    except WrongAnswerError as error:
        return code or str(error)


async def _leave(url: str, content: bytes, outcomes: Outcomes) -> None:
    try:
        connection = await Connection.open(url)
    except OSError:
        outcomes.again["connection broken (leaving)"] += 1
        return
    connection.transport.write(content)
    connection.transport.close()
    outcomes.left += 1


async def _watch(server: Serving, started_s: float, outcomes: Outcomes, stop: asyncio.Event) -> None:
    sampler = Sampler(server.url)
    sampler.server = psutil.Process(server.running.process.pid)
    while not stop.is_set():
        sample = await asyncio.to_thread(sampler.look)
        outcomes.samples.append((time.monotonic() - started_s, sample))
        await asyncio.sleep(SAMPLE_S)


def _troubles(server: Serving, repository: Path, model: str) -> list[tuple[str, Callable[[], None]]]:
    """The kinds of trouble, in order; each returns when the server has recovered."""
    versions = _versions(server, repository, model)
    engines = cycle(sorted(name for name in server.children if name.startswith("engine")))
    return [
        ("engine killed", lambda: _kill(server, next(engines))),
        ("worker killed", lambda: _kill(server, "http-0")),
        ("reloaded", lambda: next(versions)),
        ("worker killed", lambda: _kill(server, "http-1")),
    ]


def _kill(server: Serving, name: str) -> None:
    """Send SIGKILL to a child, and return when its successor is ready."""
    _wait(server, lambda: name in server.children)
    killed = server.children[name]
    os.kill(killed, signal.SIGKILL)
    _wait(server, lambda: server.children.get(name, killed) != killed)


def _serves(server: Serving, versions: set[int]) -> bool:
    """An HTTP worker serves these versions, and no others."""
    try:
        with urlopen(f"{server.url}/models", timeout=PATIENCE_S) as answer:  # noqa: S310
            return {int(one["version"]) for one in json.load(answer)["models"]} == versions
    except OSError:
        return False


def _wait(server: Serving, condition: Callable[[], bool]) -> None:
    """Wait until it holds.

    Raises:
        LoadTestError: it does not within PATIENCE_S, or the server has ended.
    """
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        if server.running.has_ended or time.monotonic() > give_up_s:
            raise LoadTestError(f"the server does not recover:\n{server.running.log_tail()}")
        time.sleep(POLL_S)


def _versions(server: Serving, repository: Path, model: str) -> Iterator[None]:
    """Publish the newest version again under the next number, and remove the older ones once it is served."""
    folder = repository / model
    while True:
        newest = max(int(path.name) for path in folder.glob("[1-9]*"))
        draft = folder / ".draft"
        shutil.copytree(folder / str(newest), draft)
        manifest = json.loads((draft / "manifest.json").read_text())
        (draft / "manifest.json").write_text(json.dumps(manifest | {"version": newest + 1}))
        draft.rename(folder / str(newest + 1))
        _wait(server, partial(_serves, server, {newest, newest + 1}))
        shutil.rmtree(folder / str(newest))
        _wait(server, partial(_serves, server, {newest + 1}))
        yield


def growth(seconds: Sequence[float], values: Sequence[float]) -> float:
    """The trend's rise over the whole time as a share of its start: the median of all pairs' slopes (Theil, 1950).

    Restarts, in which memory falls and rises again, do not affect it. NaN if there are fewer than two values.
    """
    x, y = np.asarray(seconds), np.asarray(values)
    first, second = np.triu_indices(len(x), 1)
    if not len(first):
        return float("nan")
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    return slope * float(x[-1] - x[0]) / float(np.median(y - slope * (x - x[0])))


def _report(outcomes: Outcomes, options: argparse.Namespace) -> int:
    known = [(at, sample.pss_bytes) for at, sample in outcomes.samples if sample.pss_bytes]
    settled = [(at, size) for at, size in known if at > WARM_UP * 60 * options.minutes]
    verdicts = [
        Verdict("lost requests", outcomes.lost, 0),
        Verdict("wrong answers", outcomes.wrong, 0),
        Verdict("growth of memory, %", round(100 * growth(*_columns(settled)), 2), 100 * MOST_GROWTH),
    ]
    happened = Counter(name for _, name in outcomes.events)
    sizes = [size / 2**20 for _, size in settled] or [float("nan")]
    figures = {
        "answered as expected": f"{outcomes.answered.total()}: {_listed(outcomes.answered)}",
        "sent again": f"{outcomes.again.total()}: {_listed(outcomes.again)}",
        "abandoned by their clients": str(outcomes.left),
        "troubles": _listed(happened),
        "memory (PSS of all processes)": f"{min(sizes):.0f} to {max(sizes):.0f} MiB, median {np.median(sizes):.0f} MiB",
        "faults": _listed(outcomes.faults) or "none",
    }
    title = f"Soak: {options.minutes:g} minutes, {options.rate:g} requests a second, trouble every {options.every:g} s"
    print(title, *(f"{name}: {value}" for name, value in figures.items()), *verdicts, sep="\n")
    marks = [(at, COLOURS[name]) for at, name in outcomes.events]
    pairs = list(pairwise(outcomes.samples))
    per_s = [((b.images or 0) - (a.images or 0)) / (at - was) for (was, a), (at, b) in pairs]
    rate = [(at, value) for ((_, _), (at, _)), value in zip(pairs, per_s, strict=True) if value >= 0]
    panels = [
        plots.over_time("images a second", {"inferred": _columns(rate)}, marks),
        plots.over_time("memory, MiB", {"PSS": _columns([(at, size / 2**20) for at, size in known])}, marks),
    ]
    if options.write:
        report.write(options.write.with_suffix(".html"), report.html(title, verdicts, figures, panels))
        options.write.with_suffix(".svg").write_text(plots.svg(panels))
        rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
        lines = "\n".join(f"- {verdict}" for verdict in verdicts)
        command = f"python loadtest/soak.py {' '.join(sys.argv[1:])}"
        said = f"# {title}\n\n    {command}\n\n{lines}\n\n| | |\n| --- | --- |\n{rows}\n\n"
        legend = "Lines: engine killed (red), HTTP worker killed (orange), model reloaded (green).\n"
        options.write.with_suffix(".md").write_text(
            f"{said}![memory and throughput]({options.write.stem}.svg)\n\n{legend}"
        )
    return 0 if all(verdict.kept for verdict in verdicts) else 1


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _parse() -> argparse.Namespace:
    parser = command.parser("soak.py", __doc__, model="efficientnet_lite0")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=20, metavar="N", help="requests a second (default 20)")
    parser.add_argument("--connections", type=int, default=16, metavar="N", help="requests at one time (default 16)")
    parser.add_argument("--engines", type=int, default=1, metavar="N", help="of the server, killed in turn (default 1)")
    parser.add_argument("--every", type=float, default=10, metavar="S", help="seconds between troubles (default 10)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write FILE.md, FILE.svg and FILE.html")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main))
