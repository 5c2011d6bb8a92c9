"""`python loadtest/overload.py`: what becomes of requests that come faster than a server can answer.

Measures a server's capacity in a closed loop, then sends at multiples of it in an open loop (Poisson arrivals that do
not wait for answers) and counts what arrives in time, what is refused and how soon, and what is lost. Load comes from
this machine, too, so the table says how late the generator was and what it took of the CPUs.

    python loadtest/overload.py --write docs/measurements/overload
    python loadtest/overload.py --rivals mosec,litserve --write docs/measurements/overload    # on the same network
    python loadtest/overload.py --server other=http://127.0.0.1:9000/classify --write /tmp/other
    python loadtest/overload.py --plot docs/measurements/overload.json /tmp/other.json --write /tmp/both

Exits with 1 on a wrong answer or a lost request.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import uvloop
from numpy.typing import ArrayLike

from loadtest import answers, client, machine, photos, plots, running
from loadtest.answers import WrongAnswerError
from loadtest.arguments import names, numbers
from loadtest.client import ClosedLoop, Parse, Photo
from loadtest.compare import environments
from loadtest.compare.environments import InstallError
from loadtest.compare.servers import RIVALS, SERVERS
from loadtest.machine import Meters
from loadtest.openloop import OpenLoop, OpenWindow, Outcomes
from loadtest.plots import Line, Panel
from loadtest.running import StartError

DEADLINE_HEADER = "X-Request-Timeout"
OVERDUE = "deadline_exceeded"
"""The code of requests that were accepted and then gave up."""
LATE_MS = 20.0
"""A generator whose 99th percentile is later than this was part of what limited the row."""
MOST_FAULTS = 10


class Target(NamedTuple):
    """A server to load."""

    name: str
    url: str
    members: Callable[[], Sequence[psutil.Process]] | None = None
    """its processes, where they are known"""
    headers: Mapping[str, str] = client.JPEG
    parse: Parse = answers.parse
    model: str = ""
    """where answers do not name it"""


@dataclass(frozen=True, slots=True)
class Times:
    """How often something happened, and how long after a request was due (or sent, for errors)."""

    per_s: float
    p50_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, latencies_s: ArrayLike, seconds: float) -> "Times":
        """None where nothing happened."""
        known = np.asarray(latencies_s)
        if not known.size:
            return cls(0.0, None, None)
        p50_s, p99_s = np.percentile(known, (50, 99)).tolist()
        return cls(known.size / seconds, 1e3 * p50_s, 1e3 * p99_s)


@dataclass(frozen=True, slots=True)
class Step:
    """What was measured at one offered load. All counts are of requests that were due in the window."""

    factor: float
    """of the capacity"""
    planned_per_s: float
    offered_per_s: float
    """that came: Poisson"""
    good: Times
    """right and in time"""
    accepted: Times
    """right, in time or not"""
    refused: Times
    """errors other than `overdue`, all codes together"""
    overdue: Times
    codes: dict[str, Times]
    late: int
    """right, but after the deadline"""
    wrong: int
    lost: int
    unsent: int
    """for lack of a free socket"""
    sockets: int
    lateness_p50_ms: float
    lateness_p99_ms: float
    """of the generator"""
    client_share: float
    server_share: float | None
    others_share: float | None
    """of this machine's CPUs; None: the server's processes are not known"""

    @property
    def generator_kept_up(self) -> bool:
        """The load was what it should have been."""
        return self.lateness_p99_ms < LATE_MS and not self.unsent


def main() -> int:
    """Measure or only plot; 0: every answer was right, and every request had one."""
    options = _parse()
    try:
        results = [result for path in options.plot for result in _read(path)] or _measured(options)
    except (StartError, WrongAnswerError, InstallError, OSError, EOFError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.write:
        _write(results, options)
    bad = [step for result in results for step in result["steps"] if step["wrong"] or step["lost"]]
    return 1 if bad and not options.plot else 0


def _measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    if options.server:
        return [uvloop.run(_overload(Target(name, url), options)) for name, url in options.server]
    with _ours(options) as target:
        results = [uvloop.run(_overload(target, options))]
    for name in options.rivals:
        with _rival(name, results[0]["model"], options) as target:
            results.append(uvloop.run(_overload(target, options)))
    return results


@contextmanager
def _ours(options: argparse.Namespace) -> Generator[Target]:
    models = ("--models", options.model) if options.model else ()
    limit = {} if options.deadline_header else {"SERVER_TIMEOUT_MS": f"{options.deadline_ms:g}"}
    with running.server("--repository", str(options.repository), *models, environment=limit) as (url, process):
        yield Target(options.name, f"{url}/classify", lambda: running.tree(process))


@contextmanager
def _rival(name: str, model: str, options: argparse.Namespace) -> Generator[Target]:
    """The same network behind one of those of `loadtest/compare`, in the variant that does better there."""
    from loadtest.compare import networks, rounds  # which need onnx

    server = next(server for server in SERVERS if (server.name, server.variant) == (name, "tuned"))
    image = photos.find(options.photos)[0].read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        try:
            work = networks.real(options.repository, model, Path(folder))
        except networks.PrepareError as error:
            raise StartError(str(error)) from error
        with rounds.serving(server, work, options.environments) as (started, url):
            try:
                uvloop.run(rounds.first_answer(server, started, url, client.request(url, image, server.headers)))
            except rounds.ServerError as error:
                raise StartError(f"{name}: {error} {started.log_tail()}") from error
            yield Target(server.title, url, started.members, server.headers, server.parse, model)


async def _overload(target: Target, options: argparse.Namespace) -> dict[str, Any]:
    images = [path.read_bytes() for path in photos.find(options.photos)]
    if options.pixels:
        images = [photos.resized(image, options.pixels, options.pixels) for image in images]
    found, sent = await client.ask_alone(target.url, images, target.headers, target.parse)
    model, hurried = found or target.model, sent
    if options.deadline_header:
        headers = {**target.headers, DEADLINE_HEADER: f"{options.deadline_ms / 1e3:g}"}
        contents = [client.request(target.url, image, headers) for image in images]
        hurried = [Photo(content, photo.top1) for content, photo in zip(contents, sent, strict=True)]
    kb = sum(map(len, images)) / len(images) / 1e3
    print(f"{target.name}: {model}, {len(sent)} photos of {kb:.0f} KB, deadline {options.deadline_ms:g} ms", flush=True)
    capacities = [await _capacity(target, sent, options)]
    print(f"capacity, {options.connections} connections: {capacities[0]:.1f} images/s\n{_row(None)}", flush=True)
    steps = []
    for number, factor in enumerate(options.factors):
        loop = OpenLoop(target.url, hurried, options.deadline_ms / 1e3, options.sockets, target.parse)
        window = await loop.run(
            factor * capacities[0],
            options.warm_up,
            options.seconds,
            lambda: machine.read_meters(target.members() if target.members else ()),
            seed=number,
        )
        steps.append(_step(factor, factor * capacities[0], window, has_server=target.members is not None))
        print(_row(steps[-1]), flush=True)
        for fault, count in window.faults.most_common(MOST_FAULTS):
            print(f"error, {count} times: {fault}", file=sys.stderr)
    capacities.append(await _capacity(target, sent, options))
    print(f"capacity afterwards: {capacities[1]:.1f} images/s\n", flush=True)
    return {
        "command": shlex.join(["python", "loadtest/overload.py", *sys.argv[1:]]),
        "name": target.name,
        "model": model,
        "photo_kb": kb,
        "cpus": psutil.cpu_count(),
        "deadline_ms": options.deadline_ms,
        "seconds": options.seconds,
        "sockets": options.sockets,
        "connections": options.connections,
        "capacity_per_s": capacities[0],
        "capacity_afterwards_per_s": capacities[1],
        "steps": [asdict(step) for step in steps],
    }


async def _capacity(target: Target, sent: Sequence[Photo], options: argparse.Namespace) -> float:
    """Right answers a second in a closed loop.

    Raises:
        WrongAnswerError: there was none.
    """
    window = await ClosedLoop(target.url, sent, target.parse).run(
        options.connections, options.warm_up, options.seconds, lambda: None
    )
    if not window.latencies_s:
        raise WrongAnswerError(f"in the closed loop: {'; '.join(window.faults)}")
    return len(window.latencies_s) / window.seconds


def _step(factor: float, planned_per_s: float, window: OpenWindow[Meters], *, has_server: bool) -> Step:
    outcomes, seconds = window.outcomes, window.seconds
    used = window.after.since(window.before)
    cpu_s = seconds * (psutil.cpu_count() or 1)
    lateness = Times.of(window.lateness_s, seconds)
    return Step(
        factor,
        planned_per_s,
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
        lateness_p50_ms=lateness.p50_ms or 0.0,
        lateness_p99_ms=lateness.p99_ms or 0.0,
        client_share=used.client / cpu_s,
        server_share=used.server / cpu_s if has_server else None,
        others_share=max(0.0, used.machine - used.server - used.client) / cpu_s if has_server else None,
    )


def _errors(outcomes: Outcomes, wanted: Callable[[str], bool]) -> list[float]:
    return [latency_s for code, latencies_s in outcomes.refused_s.items() if wanted(code) for latency_s in latencies_s]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


_COLUMNS: dict[str, Callable[[Step], str]] = {
    "load": lambda step: f"{step.factor:g}x" + ("" if step.generator_kept_up else "!"),
    "offered/s": lambda step: f"{step.offered_per_s:.0f}",
    "good/s": lambda step: f"{step.good.per_s:.1f}",
    "p50 ms": lambda step: _ms(step.accepted.p50_ms),
    "p99 ms": lambda step: _ms(step.accepted.p99_ms),
    "refused/s": lambda step: f"{step.refused.per_s:.1f}",
    "in p50 ms": lambda step: _ms(step.refused.p50_ms),
    "in p99 ms": lambda step: _ms(step.refused.p99_ms),
    "504/s": lambda step: f"{step.overdue.per_s:.1f}",
    "late": lambda step: str(step.late),
    "wrong": lambda step: str(step.wrong),
    "lost": lambda step: str(step.lost),
    "unsent": lambda step: str(step.unsent),
    "sockets": lambda step: str(step.sockets),
    "behind p99 ms": lambda step: f"{step.lateness_p99_ms:.1f}",
    "client": lambda step: _percent(step.client_share),
    "server": lambda step: _percent(step.server_share),
    "others": lambda step: _percent(step.others_share),
}
_LEGEND = f"""\
- good: right and within the deadline; p50, p99: of all right answers, from the moment the request was due
- refused: answered with an error, and how soon after it was sent; 504: accepted, and given up at the deadline
- late: right answers after the deadline
- lost: sent and never answered; unsent: the client had no free socket
- behind: how late the generator itself was, 99th percentile; `!`: over {LATE_MS:g} ms, or requests were unsent:
  then the load was less regular than planned, and latencies hold the generator's own delay
- client, server, others: shares of this machine's CPUs"""


def _row(step: Step | None) -> str:
    """A line of the table; None: its head."""
    cells = (text(step) if step else title for title, text in _COLUMNS.items())
    return "  ".join(cell.rjust(max(6, len(title))) for cell, title in zip(cells, _COLUMNS, strict=True))


def _read(path: Path) -> list[dict[str, Any]]:
    """The results in a file that `--write` made.

    Raises:
        ValueError: it is something else.
    """
    found: list[dict[str, Any]] = json.loads(path.read_text())
    if not isinstance(found, list) or not all("steps" in result for result in found):
        raise ValueError(f"{path}: not written by overload.py --write")
    return found


def _write(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The figures as JSON, the plot, and both as Markdown."""
    base: Path = options.write
    base.parent.mkdir(parents=True, exist_ok=True)
    base.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    plot = base.with_suffix(f".{options.format}")
    plots.save(_panels(results), plot)
    parts = ["# Overload: what arrives when more comes than can be answered", f"![goodput and latency]({plot.name})"]
    parts += [_section(result) for result in results]
    base.with_suffix(".md").write_text("\n\n".join([*parts, _LEGEND]) + "\n")


def _panels(results: Iterable[dict[str, Any]]) -> list[Panel]:
    goodput, latency = [], []
    for colour, result in enumerate(results):
        name, steps = result["name"], result["steps"]
        offered = [step["offered_per_s"] for step in steps]
        goodput.append(Line(name, offered, [step["good"]["per_s"] for step in steps]))
        for part, style in (("p50_ms", "o--"), ("p99_ms", "o-")):
            values = [step["accepted"][part] for step in steps]
            latency.append(Line(f"{name}, {part[:3]}", offered, values, style, colour=colour))
        refused = [step["refused"]["p99_ms"] for step in steps]
        latency.append(Line(f"{name}, refused p99", offered, refused, "x:", colour=colour))
    return [
        Panel("offered, requests/s", "right answers in time, 1/s", goodput),
        Panel("offered, requests/s", "ms", latency, log_y=True),
    ]


def _section(result: dict[str, Any]) -> str:
    steps = [_step_of(step) for step in result["steps"]]
    rows = [list(_COLUMNS), ["---:"] * len(_COLUMNS), *([text(step) for text in _COLUMNS.values()] for step in steps)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"## {result['name']}: {result['model']}, photos of {result['photo_kb']:.0f} KB\n\n"
        f"    {result['command']}\n\n"
        f"{result['cpus']} CPUs, shared with the generator; deadline {result['deadline_ms']:g} ms; each row "
        f"{result['seconds']:g} s; at most {result['sockets']} sockets. Capacity in a closed loop of "
        f"{result['connections']} connections: {result['capacity_per_s']:.1f} images/s before, "
        f"{result['capacity_afterwards_per_s']:.1f} after.\n\n{table}"
    )


def _step_of(found: dict[str, Any]) -> Step:
    times = {name: Times(**found[name]) for name in ("good", "accepted", "refused", "overdue")}
    codes = {code: Times(**one) for code, one in found["codes"].items()}
    return Step(**{**found, **times, "codes": codes})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="overload.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--server", type=_named, action="append", metavar="NAME=URL", help="already running; can be repeated"
    )
    parser.add_argument(
        "--rivals", type=names(RIVALS), default=[], metavar="NAME,NAME,…", help=f"after our own, of {', '.join(RIVALS)}"
    )
    parser.add_argument("--environments", type=Path, default=environments.FOLDER, metavar="FOLDER", help="of rivals")
    parser.add_argument("--name", default="this server", help="of our own server in the table and the plot")
    parser.add_argument("--plot", type=Path, nargs="+", default=[], metavar="JSON", help="measure nothing: plot these")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="FOLDER")
    parser.add_argument("--model", metavar="NAME", help="of our own server, if not its default")
    parser.add_argument("--photos", type=Path, default=photos.FOLDER, metavar="FOLDER")
    parser.add_argument("--pixels", type=int, metavar="N", help="send N x N images made of the photos instead")
    parser.add_argument("--factors", type=numbers(float), default=[0.5, 0.8, 1, 1.5, 2, 3, 5, 10], metavar="F,F,…")
    parser.add_argument("--deadline-ms", type=float, default=1000, metavar="MS", help="default 1000")
    parser.add_argument(
        "--deadline-header", action="store_true", help=f"tell the server by {DEADLINE_HEADER}, not by a setting"
    )
    parser.add_argument("--sockets", type=int, default=512, metavar="N", help="most at one time (default 512)")
    parser.add_argument("--connections", type=int, default=32, metavar="N", help="of the closed loop (default 32)")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="of each measurement (default 10)")
    parser.add_argument("--warm-up", type=float, default=2, metavar="S", help="before each (default 2)")
    parser.add_argument("--write", type=Path, metavar="BASE", help="write BASE.json, BASE.md and the plot")
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="of the plot (default svg)")
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
    sys.exit(main())
