"""`python loadtest/compare`: this server and its rivals at the same work, in one run.

Each server classifies the same photos, sent in a closed loop over keep-alive connections by the same client. There are
two networks: a real one, exported with random weights if the repository lacks it, and one with the same shapes that
costs next to nothing, so that only the cost of the server remains. Each rival is installed into its own virtual
environment, each server runs alone, and nothing is left running at the end.
This server takes its settings from `SERVER_...` in the environment, as usual.

Writes compare.jsonl (every row), compare.md (tables) and compare-*.svg (plots).
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import argparse
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from loadtest import command, photos
from loadtest.command import names, numbers
from loadtest.compare import environments, networks, report, rounds, rows
from loadtest.compare.rounds import Plan
from loadtest.compare.rows import Row
from loadtest.compare.servers import NAMES, SERVERS, Server
from loadtest.machine import cpu_name, usable_cpus
from loadtest.processes import ROOT

SAMPLE = ROOT.parent / "shared" / "data" / "imagenet-sample"
"""More photos, and more varied ones, than the project's own; used if present."""
WORKS = ("real", networks.TINY)
MOST_PHOTOS = 50
"""How many photos of a folder are used."""


def main() -> int:
    """Run the comparison; 0: every server was measured, 130: interrupted."""
    options = _parse()
    try:
        with tempfile.TemporaryDirectory(prefix="compare-networks-") as folder:
            return _compare(options, Path(folder))
    except KeyboardInterrupt:
        print("\n--resume goes on from here", file=sys.stderr)
        raise


def _compare(options: argparse.Namespace, folder: Path) -> int:
    paths = photos.find(options.photos)
    paths = paths[:: -(-len(paths) // MOST_PHOTOS)]
    servers = [server for server in SERVERS if server.name in options.servers]
    for rival in dict.fromkeys(server.name for server in servers if not server.is_ours):
        environments.ensure(rival)
    networks.export(options.repository, options.model, options.photos)
    make = {"real": networks.real, networks.TINY: networks.tiny}
    works = [make[work](options.repository, options.model, folder) for work in options.works]
    plan = Plan(
        paths,
        options.connections,
        options.rounds,
        options.seconds,
        options.warm_up,
        options.baseline_seconds,
        datetime.now(UTC),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "compare.jsonl"
    known = rows.read(file) if options.resume else []
    rows.write(file, known)
    found = known + _measure(servers, works, plan, known, file)
    _write(found, options.output, _head(plan, found))
    return 1 if any(row.failure for row in found) else 0


def _measure(
    servers: Sequence[Server], works: Sequence[networks.Work], plan: Plan, known: Sequence[Row], file: Path
) -> list[Row]:
    """Measure what is not known yet, and add each row to the file at once."""
    total = len(rounds.runs(servers, works)) * len(plan.connections) * plan.rounds
    found = []
    for row in rounds.measure(servers, works, plan, {row.key for row in known}):
        row.append(file)
        found.append(row)
        print(f"{len(known) + len(found):4}/{total} {_line(row)}", flush=True)
    return found


def _line(row: Row) -> str:
    name = f"{row.work:12} {row.server + ' ' + row.variant:16} {row.connections:4} connections"
    if not (one := row.measured):
        return f"{name}: {row.failure}"
    return f"{name}: {one} {one.memory_mb:5.0f} MB  {one.errors} errors"


def _write(found: Sequence[Row], folder: Path, head: str) -> None:
    parts = [part for part in report.summarise(found) if part.summaries]
    names = [f"compare-{part.work}.svg" for part in parts]
    for part, name in zip(parts, names, strict=True):
        report.plot(part, folder / name)
    text = report.markdown(parts, head, names)
    (folder / "compare.md").write_text(text)
    print(f"\n{text}\nwritten to {folder}")


def _head(plan: Plan, found: Sequence[Row]) -> str:
    size_kb = sum(path.stat().st_size for path in plan.photos) / len(plan.photos) / 1e3
    command = shlex.join(["python", "loadtest/compare", *sys.argv[1:]])
    runs = sorted({row.run for row in found})
    when = ", ".join(f"{run:%Y-%m-%d %H:%M} UTC" for run in runs)
    warning = "" if len(runs) == 1 else "\n\n**Not one run but several: rows of different ones were not side by side.**"
    how_often = f"{plan.rounds} rounds" if plan.rounds > 1 else "one round"
    cpus = usable_cpus()
    return f"""Written by

    {command}

begun {when}; {cpus} CPUs ({cpu_name()}), Python {platform.python_version()}.{warning}

{len(plan.photos)} JPEG photos of {size_kb:.0f} KB on average in a closed loop over keep-alive connections, {how_often}:
in each, every server ran alone, {plan.seconds:g} s for each load after {plan.warm_up_s:g} s of warm-up. Figures are
medians of the rounds. Compare only figures of one run: machines differ and drift.

- *ours*: this server with ONNX Runtime in FP32, as the rivals have it.
- *baseline*: CPUs over CPU time of decoding and inference (`loadtest/baseline.py`, ONNX Runtime, FP32), measured before
  and after each server ran; its p50 is one photo alone.
- *no spinning*: ONNX Runtime's threads do not wait actively. Each rival ran with and without; for
  each load the better of these very figures counts, which flatters it a little where they are noisy.
- *CPU-ms*: of all processes of a server, for one image. *Memory*: their proportional set sizes, under that load.
- *start*: from the command to the first right answer.
- *same class*: photos with the best class that the plain network and preprocessing find; this server resamples once
  instead of resizing and cropping, so that close races, of which random weights make many, may end otherwise.
- *errors*: refused, lost, or answered otherwise than when sent alone."""


def _parse() -> argparse.Namespace:
    repository = environments.FOLDER.with_name("model_repository")
    parser = command.parser(
        "python loadtest/compare", __doc__, seconds=8, warm_up=2, model="resnet50", repository=repository
    )
    parser.set_defaults(photos=SAMPLE if SAMPLE.is_dir() else photos.FOLDER)
    parser.add_argument("--servers", type=names(NAMES), default=NAMES, metavar="NAME,…", help=", ".join(NAMES))
    parser.add_argument("--works", type=names(WORKS), default=WORKS, metavar="NAME,…", help=", ".join(WORKS))
    parser.add_argument("--connections", type=numbers(int), default=[1, 8, 32], metavar="N,N,…", help="default 1,8,32")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    text = "of each baseline (default 4)"
    parser.add_argument("--baseline-seconds", type=float, default=4, metavar="S", help=text)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "measurements", metavar="FOLDER")
    parser.add_argument("--resume", action="store_true", help="keep existing rows, and measure the missing ones")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main))
