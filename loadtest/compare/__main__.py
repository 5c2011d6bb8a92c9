"""`python loadtest/compare`: this server and its rivals at the same work, in one run.

Each server classifies the same photos, sent in a closed loop over keep-alive connections by the same client. The
networks: a real one, and one of the same shapes that costs next to nothing, so that the server is what is left. Rivals
are installed into virtual environments of their own, each server runs alone, and nothing is left running at the end.
This server takes its settings, as always, from `SERVER_...` in the environment.

Writes compare.jsonl (every row), compare.md (tables) and compare-*.svg (plots).
"""

import argparse
import os
import platform
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from loadtest import photos
from loadtest.arguments import names
from loadtest.compare import environments, networks, report, rounds, rows
from loadtest.compare.environments import InstallError
from loadtest.compare.networks import ROOT, PrepareError
from loadtest.compare.rounds import Plan
from loadtest.compare.rows import Row
from loadtest.compare.servers import NAMES, SERVERS, Server

SAMPLE = ROOT.parent / "shared" / "data" / "imagenet-sample"
"""More and more varied photos than the project's own, where they are."""
WORKS = ("real", networks.TINY)


def main() -> int:
    """Run the comparison; 0: every server was measured, 130: interrupted."""
    options = _parse()
    # A polite kill is treated as Ctrl-C, after which every server is ended.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with tempfile.TemporaryDirectory(prefix="compare-networks-") as folder:
            return _compare(options, Path(folder))
    except (InstallError, PrepareError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; go on with --resume", file=sys.stderr)
        return 130


def _compare(options: argparse.Namespace, folder: Path) -> int:
    paths = photos.find(options.photos)
    paths = paths[:: -(-len(paths) // options.most_photos)]
    servers = [server for server in SERVERS if server.name in options.servers]
    for rival in dict.fromkeys(server.name for server in servers if not server.is_ours):
        environments.ensure(rival, options.environments)
    networks.export(options.repository, options.model, options.photos)
    make = {"real": networks.real, networks.TINY: networks.tiny}
    works = [make[work](options.repository, options.model, folder) for work in options.works]
    plan = Plan(
        paths,
        options.connections,
        options.rounds,
        options.seconds,
        options.warm_up,
        options.limit_seconds,
        datetime.now(UTC),
        options.environments,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "compare.jsonl"
    known = rows.read(file) if options.resume else []
    rows.write(file, known, append=False)
    found = known + _measure(servers, works, plan, known, file)
    _write(found, options.output, _head(plan, found))
    return 1 if any(row.failure for row in found) else 0


def _measure(
    servers: Sequence[Server], works: Sequence[networks.Work], plan: Plan, known: Sequence[Row], file: Path
) -> list[Row]:
    """Measure what is not known yet; each row is in the file as soon as it is there."""
    wanted = rounds.keys(servers, works, plan)
    done = {row.key for row in known}
    found = []
    with tqdm(total=len(wanted), initial=len(done.intersection(wanted)), unit="row", smoothing=0) as progress:
        for row in rounds.measure(servers, works, plan, done):
            rows.write(file, [row], append=True)
            found.append(row)
            progress.write(_line(row))
            progress.update()
    return found


def _line(row: Row) -> str:
    name = f"{row.work:12} {row.server + ' ' + row.variant:16} {row.connections:4} connections"
    if not (one := row.measured):
        return f"{name}: {row.failure}"
    return (
        f"{name}: {one.images_per_s:7.1f} images/s, p50 {one.p50_ms:7.1f} ms, p99 {one.p99_ms:7.1f} ms,"
        f" {one.cpu_ms:6.1f} CPU-ms, {one.memory_mb:5.0f} MB, {one.errors} errors"
    )


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
    cpus = len(os.sched_getaffinity(0))
    return f"""Written by

    {command}

begun {when}; {cpus} CPUs ({_cpu_name()}), Python {platform.python_version()}.{warning}

{len(plan.photos)} JPEG photos of {size_kb:.0f} KB on average in a closed loop over keep-alive connections, {how_often}:
in each, every server ran alone, {plan.seconds:g} s for each load after {plan.warm_up_s:g} s of warm-up. Figures are
medians of the rounds. Compare only figures of one run: machines differ and drift.

- *ours*: this server with ONNX Runtime in FP32, as the rivals have it.
- *limit*: CPUs over CPU time of decoding and inference (`python -m server.limit`, ONNX Runtime, FP32), measured before
  and after each server ran; its p50 is one photo alone.
- *no spinning*: ONNX Runtime's threads do not wait actively. Each rival ran with and without; for
  each load the better of these very figures counts, which flatters it a little where they are noisy.
- *CPU-ms*: of all processes of a server, for one image. *Memory*: their proportional set sizes, under that load.
- *start*: from the command to the first right answer.
- *same class*: photos with the best class that the plain network and preprocessing find; this server resamples once
  instead of resizing and cropping, so that close races, of which random weights make many, may end otherwise.
- *errors*: refused, lost, or answered otherwise than when sent alone."""


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python loadtest/compare", description=__doc__)
    parser.add_argument("--servers", type=names(NAMES), default=NAMES, metavar="NAME,…", help=", ".join(NAMES))
    parser.add_argument("--works", type=names(WORKS), default=WORKS, metavar="NAME,…", help=", ".join(WORKS))
    parser.add_argument("--model", default="resnet50", metavar="NAME", help="the real network (default resnet50)")
    parser.add_argument(
        "--repository",
        type=Path,
        default=environments.FOLDER.with_name("model_repository"),
        metavar="FOLDER",
        help="where the model is, or is exported to with random weights (default .compare/model_repository)",
    )
    parser.add_argument("--connections", type=_numbers, default=[1, 8, 32], metavar="N,N,…", help="default 1,8,32")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--seconds", type=float, default=8, metavar="S", help="of each measurement (default 8)")
    parser.add_argument("--warm-up", type=float, default=2, metavar="S", help="before each (default 2)")
    parser.add_argument("--limit-seconds", type=float, default=4, metavar="S", help="of each limit (default 4)")
    parser.add_argument("--photos", type=Path, default=SAMPLE if SAMPLE.is_dir() else photos.FOLDER, metavar="FOLDER")
    parser.add_argument("--most-photos", type=int, default=50, metavar="N", help="of the folder (default 50)")
    parser.add_argument("--environments", type=Path, default=environments.FOLDER, metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "measurements", metavar="FOLDER")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there, measure the others")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
