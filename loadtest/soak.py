"""`python loadtest/soak.py --minutes 30`: hours of trouble in short, and nothing may be lost.

Starts a server on a copy of a model repository, sends it good and bad requests all the time, and every few seconds
kills its engine or an HTTP worker, or publishes a version anew and removes the last. Each request must get what it is
due: the right class, or the problem document of what is wrong with it; while something restarts also a refusal that
says when to come back, and then it is sent again. The connections of a killed worker break, and what was on them is
sent again as well. Memory must not grow. Exits with 1 where any of this is not so.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from loadtest import mistakes, photos, report
from loadtest.report import Panel, Verdict
from loadtest.sampling import Sample, Sampler

ATTEMPTS = 20
"""After so many refusals and broken connections in a row a request is lost."""
ANSWER_S = 60.0
"""An answer that does not come in this time, twice the server's own `timeout_ms`, is lost."""
REFUSED_WHILE_RESTARTING = {(503, "engine_unavailable"), (429, "queue_full")}
MOST_GROWTH = 0.05
"""Share of the memory after the warm-up that the trend over the whole run may add."""
WARM_UP = 0.15
"""Share of the run after which caches, pools and arenas have their sizes."""
SAMPLE_S = 2.0
LEAVER_EVERY = 40
"""One request in so many is left by its client as soon as it is sent."""
PATIENCE_S = 120.0
MOST_FAULTS = 20
"""Kept of those that differ."""
COLOURS = {"engine killed": "red", "worker killed": "orange", "reloaded": "green"}


class SoakError(Exception):
    """The run cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A request, and the one answer that is right for it: status and code, or the class of a photo."""

    name: str
    content: bytes
    status: int
    due: str | int


@dataclass(slots=True)
class Outcomes:
    """Counts; nothing here grows with the length of the run but the samples."""

    answered: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    """attempts that were followed by another, by why"""
    left: int = 0
    lost: int = 0
    wrong: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, Sample]] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Remember what was wrong, the first few of a sort."""
        if text in self.faults or len(self.faults) < MOST_FAULTS:
            self.faults[text] += 1


class Server:
    """A server of our own, whose processes can be told apart by its log."""

    def __init__(self, repository: Path, flags: Sequence[str]) -> None:
        command = [sys.executable, "-m", "server", "--port", "0", "--repository", str(repository)]
        self._process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)  # noqa: S603
        self.process = psutil.Process(self._process.pid)
        self._pids: dict[str, int] = {}
        self._starts: Counter[str] = Counter()
        self._url = ""
        self._serving = ""
        self._tail: deque[str] = deque(maxlen=30)
        self._heard = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stderr or ():
            with self._heard:
                self._tail.append(line)
                if ready := re.search(r"(\S+) is ready, process (\d+)", line):
                    self._pids[ready[1]] = int(ready[2])
                    self._starts[ready[1]] += 1
                if url := re.search(r"ready on (http://\S+)", line):
                    self._url = url[1]
                if served := re.search(r"serving (.*)", line):
                    self._serving = served[1]
                self._heard.notify_all()

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._heard:
            if not self._heard.wait_for(lambda: condition() or self._process.poll() is not None, PATIENCE_S):
                raise SoakError(f"the server does not recover:\n{''.join(self._tail)}")
        if self._process.poll() is not None:
            raise SoakError(f"the server has ended:\n{''.join(self._tail)}")

    def url(self) -> str:
        """Where it is, once it is ready."""
        self._wait(lambda: bool(self._url))
        return self._url

    def kill(self, name: str) -> None:
        """SIGKILL to a child, "engine" or "http-0"; returns when its successor is ready."""
        starts = self._starts[name]
        os.kill(self._pids[name], signal.SIGKILL)
        self._wait(lambda: self._starts[name] > starts)

    def wait_until_serving(self, *models: str) -> None:
        """Wait until the log says that these are served, and no others."""
        self._wait(lambda: set(self._serving.split(", ")) == set(models))

    def stop(self) -> int:
        """Drain it; the exit code."""
        self._process.terminate()
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def main() -> int:
    """Run the soak and write its report; 0: every promise was kept."""
    options = _parse()
    try:
        with _server(options) as (server, repository):
            outcomes = asyncio.run(_soak(server, repository, options))
    except (SoakError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return _report(outcomes, options)


@contextmanager
def _server(options: argparse.Namespace) -> Generator[tuple[Server, Path]]:
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        repository = Path(folder) / "repository"
        shutil.copytree(options.repository / options.model, repository / options.model)
        flags = ["--http-workers", "2", "--reload-ms", "500", *options.flags.split()]
        server = Server(repository, flags)
        try:
            yield server, repository
        finally:
            server.stop()


async def _soak(server: Server, repository: Path, options: argparse.Namespace) -> Outcomes:
    url = await asyncio.to_thread(server.url)
    outcomes = Outcomes()
    kinds = await _first_answers(url, [path.read_bytes() for path in photos.find(options.photos)])
    started_s = time.monotonic()
    stop = asyncio.Event()
    senders = [
        asyncio.create_task(_send(url, kinds, options.rate / options.connections, number, outcomes, stop))
        for number in range(options.connections)
    ]
    watch = asyncio.create_task(_watch(Sampler(url), server.process, started_s, outcomes, stop))
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
    """Every kind of request; what a photo is found to be, alone and undisturbed, must not change."""
    learned: list[Kind] = []
    for content in (_request(url, image) for image in images):
        status, body = await _ask(url, content)
        if status != 200:
            raise SoakError(f"a first photo is answered {status}: {body[:200]!r}")
        learned.append(Kind("photo", content, 200, int(json.loads(body)["predictions"][0]["class_id"])))
    bad = [Kind(one.name, _request(url, one.body, one.query), one.status, one.code) for one in mistakes.of(images[0])]
    return [kind for one in learned for kind in (one, one, one)] + bad


async def _send(
    url: str, kinds: Sequence[Kind], per_s: float, number: int, outcomes: Outcomes, stop: asyncio.Event
) -> None:
    """One client: a request at a time, by the exponential distribution, each until it has its answer."""
    chance = random.Random(number)  # noqa: S311
    while not stop.is_set():
        await asyncio.sleep(chance.expovariate(per_s))
        kind = chance.choice(kinds)
        if chance.randrange(LEAVER_EVERY) == 0:
            await _leave(url, kind.content, outcomes)
        else:
            await _until_answered(url, kind, outcomes)


async def _until_answered(url: str, kind: Kind, outcomes: Outcomes) -> None:
    for _ in range(ATTEMPTS):
        try:
            async with asyncio.timeout(ANSWER_S):
                status, body = await _ask(url, kind.content)
        except TimeoutError:
            outcomes.lost += 1
            outcomes.fault(f"{kind.name}: no answer in {ANSWER_S:g} s")
            return
        except (OSError, EOFError) as error:
            outcomes.again[f"connection broken ({type(error).__name__})"] += 1
            await asyncio.sleep(0.2)
            continue
        found, code = _read_answer(status, body)
        if (status, code) in REFUSED_WHILE_RESTARTING:
            outcomes.again[code] += 1
            await asyncio.sleep(1)
            continue
        if (status, found) == (kind.status, kind.due):
            outcomes.answered[kind.name] += 1
        else:
            outcomes.wrong += 1
            outcomes.fault(f"{kind.name}: {status} {found} instead of {kind.status} {kind.due}")
        return
    outcomes.lost += 1
    outcomes.fault(f"{kind.name}: refused or cut off {ATTEMPTS} times")


def _read_answer(status: int, body: bytes) -> tuple[int | str, str]:
    """The class or the code that it has, and the code again, "" where there is none."""
    try:
        document = json.loads(body)
        if status == 200:
            return int(document["predictions"][0]["class_id"]), ""
        return str(document["code"]), str(document["code"])
    except (ValueError, LookupError, TypeError):
        return f"unreadable: {body[:100]!r}", ""


async def _leave(url: str, content: bytes, outcomes: Outcomes) -> None:
    try:
        _, writer = await _connect(url)
        writer.write(content)
        writer.close()
        outcomes.left += 1
    except OSError:
        outcomes.again["connection broken (leaving)"] += 1


async def _ask(url: str, content: bytes) -> tuple[int, bytes]:
    """Status and body; on a connection of its own, so that workers share the load also after one was restarted."""
    reader, writer = await _connect(url)
    try:
        writer.write(content)  # a refusal may come before the last byte is sent
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        if length is None:
            raise ConnectionError(f"an answer without a length: {head[:200]!r}")
        return int(head[9:12]), await reader.readexactly(int(length[1]))
    finally:
        writer.close()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port or 80)


def _request(url: str, body: bytes, query: str = "") -> bytes:
    head = f"POST /classify{query} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _watch(
    sampler: Sampler, server: psutil.Process, started_s: float, outcomes: Outcomes, stop: asyncio.Event
) -> None:
    sampler.server = server
    while not stop.is_set():
        sample = await asyncio.to_thread(sampler.look)
        outcomes.samples.append((time.monotonic() - started_s, sample))
        await asyncio.sleep(SAMPLE_S)


def _troubles(server: Server, repository: Path, model: str) -> list[tuple[str, Callable[[], None]]]:
    """What is done in turns; each returns when the server has recovered."""
    versions = _versions(server, repository, model)
    return [
        ("engine killed", lambda: server.kill("engine")),
        ("worker killed", lambda: server.kill("http-0")),
        ("reloaded", lambda: next(versions)),
        ("worker killed", lambda: server.kill("http-1")),
    ]


def _versions(server: Server, repository: Path, model: str) -> Iterator[None]:
    """Publish the newest version again under the next number, and remove the older ones once it is served."""
    folder = repository / model
    while True:
        newest = max(int(path.name) for path in folder.glob("[1-9]*"))
        draft = folder / ".draft"
        shutil.copytree(folder / str(newest), draft)
        manifest = json.loads((draft / "manifest.json").read_text())
        (draft / "manifest.json").write_text(json.dumps(manifest | {"version": newest + 1}))
        draft.rename(folder / str(newest + 1))
        server.wait_until_serving(f"{model} version {newest}", f"{model} version {newest + 1}")
        shutil.rmtree(folder / str(newest))
        server.wait_until_serving(f"{model} version {newest + 1}")
        yield


def growth(seconds: Sequence[float], values: Sequence[float]) -> float:
    """The trend's rise over the whole time as a share of its start: the median of all pairs' slopes (Theil, 1950).

    Restarts, where memory falls and rises again, do not move it. Not a number where there are fewer than two values.
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
        "answered as was due": f"{outcomes.answered.total()}: {_listed(outcomes.answered)}",
        "sent again": f"{outcomes.again.total()}: {_listed(outcomes.again)}",
        "left by their clients": str(outcomes.left),
        "done to the server": _listed(happened),
        "memory (PSS of all processes)": f"{min(sizes):.0f} to {max(sizes):.0f} MiB, median {np.median(sizes):.0f} MiB",
        "at fault": _listed(outcomes.faults) or "nothing",
    }
    title = f"Soak: {options.minutes:g} minutes, {options.rate:g} requests a second, trouble every {options.every:g} s"
    print(title, *(f"{name}: {value}" for name, value in figures.items()), *verdicts, sep="\n")
    marks = [(at, COLOURS[name]) for at, name in outcomes.events]
    pairs = list(pairwise(outcomes.samples))
    per_s = [((b.images or 0) - (a.images or 0)) / (at - was) for (was, a), (at, b) in pairs]
    rate = [(at, value) for ((_, _), (at, _)), value in zip(pairs, per_s, strict=True) if value >= 0]
    panels = [
        Panel("images a second", {"inferred": _columns(rate)}, marks),
        Panel("memory, MiB", {"PSS": _columns([(at, size / 2**20) for at, size in known])}, marks),
    ]
    if options.write:
        report.write(options.write.with_suffix(".html"), report.html(title, verdicts, figures, panels))
        options.write.with_suffix(".svg").write_text(report.svg(panels))
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
    parser = argparse.ArgumentParser(prog="soak.py", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=20, metavar="N", help="requests a second (default 20)")
    parser.add_argument("--connections", type=int, default=16, metavar="N", help="requests at one time (default 16)")
    parser.add_argument("--every", type=float, default=10, metavar="S", help="seconds between troubles (default 10)")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="FOLDER")
    parser.add_argument("--model", default="efficientnet_lite0", metavar="NAME")
    parser.add_argument("--photos", type=Path, default=photos.FOLDER, metavar="FOLDER")
    parser.add_argument("--flags", default="", help="more of the server's flags, in one string")
    parser.add_argument("--write", type=Path, metavar="FILE", help="FILE.md, FILE.svg and FILE.html")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
