"""`python loadtest/mlperf.py`: MLPerf's LoadGen tests a server over HTTP, and judges whether the run is valid.

LoadGen decides what is sent and when, measures, and judges. This command is its system under test: it posts the photos
that LoadGen picks, unchanged, and hands back the class that the server answers. The server does the decoding.

    python loadtest/mlperf.py --write docs/measurements/mlperf.md
    python loadtest/mlperf.py --url http://127.0.0.1:8000 --scenario Server --target-qps 40 --target-latency-ms 200
    python loadtest/mlperf.py --mode accuracy --photos IMAGES --labels val_map.txt

Exits with 1 if LoadGen's verdict is INVALID, or a request got no right answer.
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import argparse
import asyncio
import importlib.metadata
import json
import os
import shlex
import sys
import threading
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import psutil
import uvloop

from loadtest import command, loops, machine, photos, processes, tables
from loadtest.command import LoadTestError, names
from loadtest.connection import Connection, Response, request
from loadtest.loops import Target
from loadtest.responses import WrongAnswerError
from loadtest.results import MOST_FAULTS
from loadtest.tables import decimal
from models import hints

SCENARIOS = ("SingleStream", "Server", "Offline")
MODES = ("performance", "accuracy")
METRICS = {
    "SingleStream": ("early_stopping_latency_ss", "ms (p90)", 1e-6),
    "Server": ("result_completed_samples_per_sec", "images/s", 1.0),
    "Offline": ("result_samples_per_second", "images/s", 1.0),
}
"""By scenario: the key of MLPerf's figure in LoadGen's log, its unit, and the factor that converts it."""
PERCENTILES = ("50.00", "90.00", "99.00")
"""As LoadGen's log spells them."""
MOST_IN_MEMORY = 1024
"""Photos that LoadGen chooses from in performance runs, as MLPerf's own image classification does."""
PROBE_S = 3.0
"""Length of the closed loop that estimates the rates and latencies which LoadGen needs to know in advance."""
SERVER_SHARE = 0.5
"""Share of a closed loop's images a second to send in Server, without --target-qps."""
OFFLINE_SHARE = 1.5
"""The same for Offline: too many images only take longer, but too few to fill the duration make the run INVALID."""


class Row(NamedTuple):
    """LoadGen's result for one run."""

    scenario: str
    mode: str
    verdict: str
    figure: str
    answers: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    failed: int


COLUMNS: tables.Columns[Row] = {
    "scenario": lambda row: row.scenario,
    "mode": lambda row: row.mode,
    "verdict": lambda row: row.verdict,
    "result": lambda row: row.figure,
    "answers": lambda row: str(row.answers),
    "p50 ms": lambda row: decimal(row.p50_ms),
    "p90 ms": lambda row: decimal(row.p90_ms),
    "p99 ms": lambda row: decimal(row.p99_ms),
    "failed": lambda row: str(row.failed),
}


def main() -> int:
    """Run LoadGen once for each scenario and mode; 0: all valid, and every answer was right."""
    options = _parse()
    loadgen = _loadgen()
    for folder in (options.logs / scenario / mode for scenario in options.scenario for mode in options.mode):
        folder.mkdir(parents=True, exist_ok=True)
    if options.url:
        return uvloop.run(_all(loadgen, options.url, options))
    models = ("--models", options.model) if options.model else ()
    with processes.serve("--repository", str(options.repository), *models) as server:
        return uvloop.run(_all(loadgen, server.url, options))


class SystemUnderTest:
    """Sends the requests that LoadGen issues, and reports each answer to it."""

    def __init__(self, loadgen: ModuleType, target: Target, paths: Sequence[Path]) -> None:
        self.faults: Counter[str] = Counter()
        """Requests that got no right answer, by error. LoadGen knows no failures, so it gets an answer without data."""
        self.answers = 0
        self.known_as: dict[int, set[str]] = {}
        """Label and WordNet id of each class that was answered, by class index."""
        self._loadgen, self._target, self._paths = loadgen, target, paths
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[tuple[int, int]] = asyncio.Queue()  # LoadGen's id, and the photo's index
        self._requests: dict[int, bytes] = {}

    def load(self, indices: Sequence[int]) -> None:
        """Called on LoadGen's threads: read photos, outside the measured time."""
        target = self._target
        self._requests |= {at: request(target.url, self._paths[at].read_bytes(), target.headers) for at in indices}

    def unload(self, indices: Sequence[int]) -> None:
        """Called on LoadGen's threads: drop photos that are no longer needed."""
        for index in indices:
            del self._requests[index]

    def issue(self, samples: Sequence[Any]) -> None:
        """Called on LoadGen's threads: queue these requests, which are due now."""
        asked = [(sample.id, sample.index) for sample in samples]
        with suppress(RuntimeError):  # after Ctrl-C the loop is closed
            self._loop.call_soon_threadsafe(self._enqueue, asked)

    async def send(self) -> None:
        """Send queued requests, oldest first, over one connection until cancelled; reconnect if it has been idle."""
        connection: Connection | None = None
        try:
            while True:
                query, index = await self._waiting.get()
                found = b""
                try:
                    connection = await self._usable(connection)
                    found = self._class(await connection.ask(self._requests[index]))
                    self.answers += 1
                except (OSError, WrongAnswerError) as error:
                    self.faults[str(error) or repr(error)] += 1
                self._complete(query, found)
        finally:
            if connection:
                connection.transport.abort()

    async def _usable(self, connection: Connection | None) -> Connection:
        if connection and connection.is_fresh:
            return connection
        if connection:
            connection.transport.abort()
        return await Connection.open(self._target.url)

    def _enqueue(self, asked: Sequence[tuple[int, int]]) -> None:
        for one in asked:
            self._waiting.put_nowait(one)

    def _class(self, response: Response) -> bytes:
        """The best class as LoadGen logs it: int32, which MLPerf's own scripts read as well."""
        top1 = self._target.parse(*response).top1
        if top1 not in self.known_as:
            best = json.loads(response.body)["predictions"][0]
            self.known_as[top1] = {str(name) for name in (best.get("label"), best.get("wordnet_id")) if name}
        return np.int32(top1).tobytes()

    def _complete(self, query: int, data: bytes) -> None:
        held = array("B", data)  # LoadGen copies it before it returns
        address, _ = held.buffer_info()
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(query, address, len(data))])


async def _all(loadgen: ModuleType, base_url: str, options: argparse.Namespace) -> int:
    target = Target(f"{base_url.rstrip('/')}/classify" + (f"?model={options.model}" if options.model else ""))
    paths = photos.find(options.photos)
    known = _known(paths, options.labels) if "accuracy" in options.mode else []
    model, sent = await loops.ask_alone(target, [path.read_bytes() for path in paths[:MOST_IN_MEMORY]])
    print(f"{model}, {len(paths)} photos\n", flush=True)
    print(tables.line(COLUMNS, None), flush=True)
    rows, faults = list[Row](), Counter[str]()
    for scenario in options.scenario:
        connections = 1 if scenario == "SingleStream" else options.connections
        probe = await loops.closed_loop(target, sent, connections, 0.5, PROBE_S, lambda: None)
        if not probe.latencies_s:
            raise LoadTestError(f"no answer within {PROBE_S:g} s: {'; '.join(probe.faults)}")
        for mode in options.mode:
            settings = _settings(loadgen, scenario, mode, probe.latencies_s, options)
            logs: Path = options.logs / scenario / mode
            system = SystemUnderTest(loadgen, target, paths)
            await _test(loadgen, system, settings, len(paths), connections, logs)
            rows.append(_row(scenario, mode, logs, system, known))
            faults += system.faults
            print(tables.line(COLUMNS, rows[-1]), flush=True)
    print(f"\nLoadGen's logs are in {options.logs}")
    for fault, count in faults.most_common(MOST_FAULTS):
        print(f"error, {count} times: {fault}", file=sys.stderr)
    if options.write:
        options.write.write_text(_page(model, len(paths), rows, options))
    return 1 if faults or any(row.verdict == "INVALID" for row in rows) else 0


async def _test(
    loadgen: ModuleType, system: SystemUnderTest, settings: object, images: int, connections: int, logs: Path
) -> None:
    """Run LoadGen once, in its own thread: it blocks until it is done, and cannot be interrupted."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    output = loadgen.LogOutputSettings()
    output.outdir = str(logs)
    log = loadgen.LogSettings()
    log.log_output, log.enable_trace = output, False

    def run() -> None:
        sut = loadgen.ConstructSUT(system.issue, lambda: None)
        library = loadgen.ConstructQSL(images, min(images, MOST_IN_MEMORY), system.load, system.unload)
        loadgen.StartTestWithLogSettings(sut, library, settings, log)
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
        loop.call_soon_threadsafe(done.set_result, None)

    senders = [asyncio.create_task(system.send()) for _ in range(connections)]
    try:
        threading.Thread(target=run, daemon=True).start()
        ended, _ = await asyncio.wait([done, *senders], return_when=asyncio.FIRST_COMPLETED)
        for one in ended:
            await one  # a sender ends early only by an unexpected error
    finally:
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)


def _settings(
    loadgen: ModuleType, scenario: str, mode: str, latencies_s: Sequence[float], options: argparse.Namespace
) -> Any:
    """LoadGen's settings; latencies are those of a closed loop of PROBE_S."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = getattr(loadgen.TestMode, f"{mode.title()}Only")
    settings.min_duration_ms = round(1e3 * options.min_duration_s)
    settings.min_query_count = options.min_queries
    reached = len(latencies_s) / PROBE_S
    settings.single_stream_expected_latency_ns = round(1e9 * min(latencies_s) / 2)  # rather too many queries
    settings.offline_expected_qps = options.target_qps or OFFLINE_SHARE * reached
    settings.server_target_qps = options.target_qps or SERVER_SHARE * reached
    settings.server_target_latency_ns = round(1e6 * options.target_latency_ms)
    return settings


def _row(scenario: str, mode: str, logs: Path, system: SystemUnderTest, known: Sequence[str]) -> Row:
    failed = system.faults.total()
    if mode == "accuracy":
        share = _top1(json.loads((logs / "mlperf_log_accuracy.json").read_text()), system.known_as, known)
        return Row(scenario, mode, "-", f"top-1 {share:.2%}", system.answers, None, None, None, failed)
    found = _details(logs / "mlperf_log_detail.txt")
    for reason in filter(None, (found.get("result_invalid_reason"),)):
        print(f"{scenario} is INVALID: {reason}", file=sys.stderr)
    key, unit, factor = METRICS[scenario]
    figure = f"{factor * found[key]:.1f} {unit}" if found.get(key) else "-"  # 0: too few queries for an estimate
    p50_ms, p90_ms, p99_ms = (1e-6 * found[f"result_{which}_percentile_latency_ns"] for which in PERCENTILES)
    return Row(scenario, mode, found["result_validity"], figure, system.answers, p50_ms, p90_ms, p99_ms, failed)


def _details(path: Path) -> dict[str, Any]:
    """LoadGen's log: each line has a key and its value as JSON, after a marker."""
    lines = (line.partition(":::MLLOG ")[2] for line in path.read_text().splitlines())
    return {entry["key"]: entry["value"] for entry in map(json.loads, filter(None, lines))}


def _top1(answers: Sequence[Mapping[str, Any]], known_as: Mapping[int, set[str]], known: Sequence[str]) -> float:
    """Share of the answers in LoadGen's accuracy log that name the photo's known class.

    Raises:
        LoadTestError: no answer names any photo's class, so photos and model must name their classes differently.
    """
    found = {answer["qsl_idx"]: _logged(answer["data"]) for answer in answers}
    names = {index: {*known_as.get(index, ()), str(index)} for index in found.values() if index is not None}
    if set(known).isdisjoint(set().union(*names.values())):
        raise LoadTestError(f"no answer is one of the photos' classes ({known[0]}, ...): name them by --labels")
    right = sum(index is not None and known[photo] in names[index] for photo, index in found.items())
    return right / len(known)


def _logged(data: str) -> int | None:
    """The class in an entry of LoadGen's accuracy log; None: the request had failed."""
    return int(np.frombuffer(bytes.fromhex(data), np.int32)[0]) if data else None


def _known(paths: Sequence[Path], labels: Path | None) -> list[str]:
    """The class of each photo: its index in MLPerf's `val_map.txt`, else the WordNet id in its name, else its folder.

    Raises:
        LoadTestError: a photo is not in the file, or a line is malformed.
    """
    if labels is None:
        start = [path.name.partition("_")[0] for path in paths]
        if all(name[:1] == "n" and name[1:].isdigit() for name in start):
            return start
        return [path.parent.name for path in paths]
    lines = [line.split() for line in labels.read_text().splitlines() if line.strip()]
    if any(len(line) != 2 or not line[1].isdigit() for line in lines):
        raise LoadTestError(f"{labels}: lines must be a photo's name and its class index, as in val_map.txt")
    classes = {name: index for name, index in lines}  # noqa: C416 # of two words each
    if missing := [path.name for path in paths if path.name not in classes]:
        raise LoadTestError(f"{labels} has no class for {missing[0]}")
    return [classes[path.name] for path in paths]


def _page(model: str, images: int, rows: Sequence[Row], options: argparse.Namespace) -> str:
    version = importlib.metadata.version("mlcommons-loadgen")
    bounds = (
        f"A run takes at least {options.min_duration_s:g} s and {options.min_queries} queries; at most "
        f"{options.connections} connections; Server within {options.target_latency_ms:g} ms (99th percentile)."
    )
    return f"""\
# MLPerf LoadGen

    {shlex.join(["python", "loadtest/mlperf.py", *sys.argv[1:]])}

{model}, {images} photos, sent as they are. {machine.cpu_name()}, {psutil.cpu_count()} CPUs, which LoadGen, its senders
and the server share; the load at the end was {os.getloadavg()[0]:.1f}, as `uptime` tells it. LoadGen {version}.
{bounds}

{tables.markdown(COLUMNS, rows, texts=4)}

The verdict is LoadGen's own; accuracy is computed from its log and has none. A failed request got no right answer.
[What the scenarios are, and how far this is from a submission](../guides/loadtest.md#mlperf).
"""


def _loadgen() -> ModuleType:
    """LoadGen's module.

    Raises:
        LoadTestError: it is not installed.
    """
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise LoadTestError(
            f"LoadGen is not installed: {hints.install('loadtest')} (where there is a wheel of mlcommons-loadgen)"
        ) from error
    return mlperf_loadgen  # type: ignore[no-any-return]


def _parse() -> argparse.Namespace:
    parser = command.parser("mlperf.py", __doc__)
    parser.add_argument("--url", help="use a server already running, such as http://127.0.0.1:8000")
    parser.add_argument(
        "--scenario", type=names(SCENARIOS), default=SCENARIOS, metavar="NAME,…", help="default all three"
    )
    text = f"{' or '.join(MODES)}, or both (default {MODES[0]})"
    parser.add_argument("--mode", type=names(MODES), default=MODES[:1], metavar="MODE,…", help=text)
    text = "a photo's name and class index in each line (val_map.txt); default: WordNet ids or folders name the classes"
    parser.add_argument("--labels", type=Path, metavar="FILE", help=text)
    text = "of each run, at least (default 60; MLPerf's rules: 600)"
    parser.add_argument("--min-duration-s", type=float, default=60, metavar="S", help=text)
    parser.add_argument("--min-queries", type=int, default=100, metavar="N", help="of each run (default 100)")
    text = "images a second that Server sends and Offline assumes; default: estimated by a closed loop beforehand"
    parser.add_argument("--target-qps", type=float, metavar="N", help=text)
    text = "that 99 %% of Server's answers must meet (default 100; MLPerf's rules for ResNet-50: 15)"
    parser.add_argument("--target-latency-ms", type=float, default=100, metavar="MS", help=text)
    parser.add_argument("--connections", type=int, default=32, metavar="N", help="at most (default 32)")
    logs = Path("loadtest/reports/mlperf")
    text = f"LoadGen's logs go to FOLDER/SCENARIO/MODE (default {logs})"
    parser.add_argument("--logs", type=Path, default=logs, metavar="FOLDER", help=text)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as a page of Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    code = command.run(main)
    if code == 130:
        os._exit(code)  # LoadGen's threads cannot be stopped, and would run on while the interpreter shuts down
    sys.exit(code)
