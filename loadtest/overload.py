"""`python loadtest/overload.py`: what happens to requests that come faster than a server can answer.

Measures a server's capacity in a closed loop, then sends at multiples of it in an open loop (Poisson arrivals that do
not wait for answers) and counts the answers in time, the refusals and how soon they came, and the requests lost. The
load generator shares the machine, so the table also shows how late it was and its share of the CPUs.

    python loadtest/overload.py --write docs/measurements/overload
    python loadtest/overload.py --rivals mosec,litserve --write docs/measurements/overload    # on the same network
    python loadtest/overload.py --server other=http://127.0.0.1:9000/classify --write /tmp/other
    python loadtest/overload.py --plot docs/measurements/overload.json /tmp/other.json --write /tmp/both

Exits with 1 on a wrong answer or a lost request.
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop

from loadtest import command, loops, machine, photos, plots, processes, results, tables
from loadtest.command import LoadTestError, names, numbers
from loadtest.compare.servers import RIVALS, SERVERS
from loadtest.connection import request
from loadtest.loops import OpenLoop, OpenWindow, Outcomes, Photo, Target
from loadtest.machine import Meters
from loadtest.plots import Line, Panel
from loadtest.results import MOST_FAULTS, Overload, OverloadStep, Times, percentiles_ms
from loadtest.tables import decimal, percent

DEADLINE_HEADER = "X-Request-Timeout"
OVERDUE = "deadline_exceeded"
"""The code of requests that were accepted and then missed their deadline."""
LATE_MS = 20.0
"""If the generator's 99th percentile of lateness exceeds this, it helped to limit the row."""

COLUMNS: tables.Columns[OverloadStep] = {
    "load": lambda step: f"{step.factor:g}x" + ("" if _kept_up(step) else "!"),
    "offered/s": lambda step: f"{step.offered_per_s:.0f}",
    "good/s": lambda step: f"{step.good.per_s:.1f}",
    "p50 ms": lambda step: decimal(step.accepted.p50_ms),
    "p99 ms": lambda step: decimal(step.accepted.p99_ms),
    "refused/s": lambda step: f"{step.refused.per_s:.1f}",
    "in p50 ms": lambda step: decimal(step.refused.p50_ms),
    "in p99 ms": lambda step: decimal(step.refused.p99_ms),
    "504/s": lambda step: f"{step.overdue.per_s:.1f}",
    "late": lambda step: str(step.late),
    "wrong": lambda step: str(step.wrong),
    "lost": lambda step: str(step.lost),
    "unsent": lambda step: str(step.unsent),
    "sockets": lambda step: str(step.sockets),
    "behind p99 ms": lambda step: f"{step.lateness_p99_ms:.1f}",
    "client": lambda step: percent(step.client_share),
    "server": lambda step: percent(step.server_share),
    "others": lambda step: percent(step.others_share),
}
LEGEND = f"""\
- good: right and within the deadline; p50, p99: of all right answers, from the moment the request was due
- refused: answered with an error, and how soon after it was sent; 504: accepted, and given up at the deadline
- late: right answers after the deadline
- lost: sent and never answered; unsent: the client had no free socket
- behind: how late the generator itself was, 99th percentile; `!`: over {LATE_MS:g} ms, or requests were unsent:
  then the load was less regular than planned, and latencies hold the generator's own delay
- client, server, others: shares of this machine's CPUs"""


class Server(NamedTuple):
    """A server to load."""

    name: str
    target: Target
    members: Callable[[], Sequence[psutil.Process] | None] = lambda: None
    """its processes; None if they are unknown"""
    model: str = ""
    """its name, if answers do not give it"""


def main() -> int:
    """Measure or only plot; 0: every answer was right, and every request had one."""
    options = _parse()
    found = [result for path in options.plot for result in _read(path)] or _measured(options)
    if options.write:
        _write(found, options)
    bad = [step for result in found for step in result.steps if step.wrong or step.lost]
    return 1 if bad and not options.plot else 0


def _measured(options: argparse.Namespace) -> list[Overload]:
    if options.server:
        return [uvloop.run(_overload(Server(name, Target(url)), options)) for name, url in options.server]
    with _ours(options) as server:
        found = [uvloop.run(_overload(server, options))]
    for name in options.rivals:
        with _rival(name, found[0].model, options) as server:
            found.append(uvloop.run(_overload(server, options)))
    return found


@contextmanager
def _ours(options: argparse.Namespace) -> Generator[Server]:
    models = ("--models", options.model) if options.model else ()
    settings = {} if options.deadline_header else {"SERVER_TIMEOUT_MS": f"{options.deadline_ms:g}"}
    with processes.serve("--repository", str(options.repository), *models, environment=settings) as server:
        yield Server("this server", Target(f"{server.url}/classify"), server.members)


@contextmanager
def _rival(name: str, model: str, options: argparse.Namespace) -> Generator[Server]:
    """The same network behind a rival from `loadtest/compare`, in the variant that does better there."""
    from loadtest.compare import networks, rounds  # these need onnx

    rival = next(server for server in SERVERS if (server.name, server.variant) == (name, "tuned"))
    image = photos.find(options.photos)[0].read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        work = networks.real(options.repository, model, Path(folder))
        with rounds.serving(rival, work) as (running, target):
            uvloop.run(rounds.first_answer(running, target, request(target.url, image, target.headers)))
            yield Server(rival.title, target, running.members, model)


async def _overload(server: Server, options: argparse.Namespace) -> Overload:
    target, images = server.target, [path.read_bytes() for path in photos.find(options.photos)]
    if options.pixels:
        images = [photos.resized(image, options.pixels, options.pixels) for image in images]
    found, sent = await loops.ask_alone(target, images)
    model, hurried = found or server.model, sent
    if options.deadline_header:
        headers = {**target.headers, DEADLINE_HEADER: f"{options.deadline_ms / 1e3:g}"}
        contents = [request(target.url, image, headers) for image in images]
        hurried = [Photo(content, photo.top1) for content, photo in zip(contents, sent, strict=True)]
    kb = sum(map(len, images)) / len(images) / 1e3
    print(f"{server.name}: {model}, {len(sent)} photos of {kb:.0f} KB, deadline {options.deadline_ms:g} ms", flush=True)
    capacity_per_s = await _capacity(target, sent, options)
    print(f"capacity, {options.connections} connections: {capacity_per_s:.1f} images/s", flush=True)
    print(tables.line(COLUMNS, None), flush=True)
    steps = []
    for number, factor in enumerate(options.factors):
        loop = OpenLoop(target, hurried, options.deadline_ms / 1e3, options.sockets)
        window = await loop.run(
            factor * capacity_per_s,
            options.warm_up,
            options.seconds,
            lambda: machine.read_meters(server.members()),
            seed=number,
        )
        steps.append(_step(factor, window))
        print(tables.line(COLUMNS, steps[-1]), flush=True)
        for fault, count in window.faults.most_common(MOST_FAULTS):
            print(f"error, {count} times: {fault}", file=sys.stderr)
    afterwards_per_s = await _capacity(target, sent, options)
    print(f"capacity afterwards: {afterwards_per_s:.1f} images/s\n", flush=True)
    return Overload(
        command=shlex.join(["python", "loadtest/overload.py", *sys.argv[1:]]),
        name=server.name,
        model=model,
        photo_kb=kb,
        cpus=psutil.cpu_count() or 1,
        deadline_ms=options.deadline_ms,
        seconds=options.seconds,
        sockets=options.sockets,
        connections=options.connections,
        capacity_per_s=capacity_per_s,
        capacity_afterwards_per_s=afterwards_per_s,
        steps=steps,
    )


async def _capacity(target: Target, sent: Sequence[Photo], options: argparse.Namespace) -> float:
    """Right answers a second in a closed loop.

    Raises:
        LoadTestError: there was none.
    """
    window = await loops.closed_loop(target, sent, options.connections, options.warm_up, options.seconds, lambda: None)
    if not window.latencies_s:
        raise LoadTestError(f"in the closed loop: {'; '.join(window.faults)}")
    return len(window.latencies_s) / window.seconds


def _step(factor: float, window: OpenWindow[Meters]) -> OverloadStep:
    outcomes, seconds = window.outcomes, window.seconds
    return OverloadStep(
        **window.after.since(window.before).shares(seconds).model_dump(),
        factor=factor,
        offered_per_s=outcomes.due / seconds,
        good=Times.of(outcomes.good_s, seconds),
        accepted=Times.of(outcomes.good_s + outcomes.late_s, seconds),
        refused=Times.of(_errors(outcomes, lambda code: code != OVERDUE), seconds),
        overdue=Times.of(_errors(outcomes, lambda code: code == OVERDUE), seconds),
        codes={code: Times.of(latencies_s, seconds) for code, latencies_s in outcomes.refused_s.items()},
        late=len(outcomes.late_s),
        wrong=outcomes.wrong,
        lost=outcomes.lost,
        unsent=outcomes.unsent,
        sockets=window.most_sockets,
        lateness_p99_ms=percentiles_ms(outcomes.lateness_s or [0.0], 99)[0],
    )


def _errors(outcomes: Outcomes, wanted: Callable[[str], bool]) -> list[float]:
    return [latency_s for code, latencies_s in outcomes.refused_s.items() if wanted(code) for latency_s in latencies_s]


def _kept_up(step: OverloadStep) -> bool:
    """The generator sent the load as planned."""
    return step.lateness_p99_ms < LATE_MS and not step.unsent


def _read(path: Path) -> list[Overload]:
    """The results in a file that `--write` made.

    Raises:
        LoadTestError: the file holds something else.
    """
    try:
        return results.read(list[Overload], path)
    except LoadTestError as error:
        raise LoadTestError(f"{path}: not written by overload.py --write") from error


def _write(found: Sequence[Overload], options: argparse.Namespace) -> None:
    """The figures as JSON, the plot, and both as Markdown."""
    base: Path = options.write
    base.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([result.model_dump() for result in found], indent=1)
    base.with_suffix(".json").write_text(text + "\n")
    plot = base.with_suffix(".svg")
    plots.save(_panels(found), plot)
    parts = ["# Overload: more requests than the server can answer", f"![goodput and latency]({plot.name})"]
    parts += [_section(result) for result in found]
    base.with_suffix(".md").write_text("\n\n".join([*parts, LEGEND]) + "\n")


def _panels(found: Sequence[Overload]) -> list[Panel]:
    goodput, latency = [], []
    for colour, result in enumerate(found):
        name, steps = result.name, result.steps
        offered = [step.offered_per_s for step in steps]
        lines = (
            ("p50", "o--", [step.accepted.p50_ms for step in steps]),
            ("p99", "o-", [step.accepted.p99_ms for step in steps]),
            ("refused p99", "x:", [step.refused.p99_ms for step in steps]),
        )
        goodput.append(Line(name, offered, [step.good.per_s for step in steps]))
        latency += [Line(f"{name}, {label}", offered, values, style, colour=colour) for label, style, values in lines]
    return [
        Panel("offered, requests/s", "right answers in time, 1/s", goodput),
        Panel("offered, requests/s", "ms", latency, log_y=True),
    ]


def _section(result: Overload) -> str:
    return (
        f"## {result.name}: {result.model}, photos of {result.photo_kb:.0f} KB\n\n"
        f"    {result.command}\n\n"
        f"{result.cpus} CPUs, shared with the generator; deadline {result.deadline_ms:g} ms; each row "
        f"{result.seconds:g} s; at most {result.sockets} sockets. Capacity in a closed loop of "
        f"{result.connections} connections: {result.capacity_per_s:.1f} images/s before, "
        f"{result.capacity_afterwards_per_s:.1f} after.\n\n{tables.markdown(COLUMNS, result.steps)}"
    )


def _parse() -> argparse.Namespace:
    parser = command.parser("overload.py", __doc__, seconds=10, warm_up=2)
    parser.add_argument(
        "--server", type=_named, action="append", metavar="NAME=URL", help="already running; can be repeated"
    )
    parser.add_argument(
        "--rivals", type=names(RIVALS), default=[], metavar="NAME,NAME,…", help=f"after our own, of {', '.join(RIVALS)}"
    )
    parser.add_argument("--plot", type=Path, nargs="+", default=[], metavar="JSON", help="measure nothing: plot these")
    parser.add_argument("--pixels", type=int, metavar="N", help="send N x N images made of the photos instead")
    parser.add_argument("--factors", type=numbers(float), default=[0.5, 0.8, 1, 1.5, 2, 3, 5, 10], metavar="F,F,…")
    parser.add_argument("--deadline-ms", type=float, default=1000, metavar="MS", help="default 1000")
    parser.add_argument(
        "--deadline-header", action="store_true", help=f"tell the server by {DEADLINE_HEADER}, not by a setting"
    )
    parser.add_argument("--sockets", type=int, default=512, metavar="N", help="most open at one time (default 512)")
    parser.add_argument("--connections", type=int, default=32, metavar="N", help="of the closed loop (default 32)")
    parser.add_argument("--write", type=Path, metavar="BASE", help="write BASE.json, BASE.md and the plot")
    options = parser.parse_args()
    if options.server and options.rivals:
        parser.error("--rivals are measured after our own server, not after --server")
    return options


def _named(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not (name and equals and url):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL")
    return name, url


if __name__ == "__main__":
    sys.exit(command.run(main))
