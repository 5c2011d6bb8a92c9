"""`python loadtest/growth.py`: how throughput, latency, CPU time and memory grow with one thing at a time.

Each step starts a server, drives it in a closed loop for some seconds and adds a line to a file; steps that are in the
file already are not measured again, so that a long run can be stopped and gone on with. Then it draws one plot for each
dimension beside the file. Machines are noisy, and CPU time an image is steadier than images a second: look at both.

    python loadtest/growth.py                                       # everything, into docs/measurements/growth.jsonl
    python loadtest/growth.py --dimensions batch,connections --seconds 3
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import harmonic_mean
from typing import Any
from urllib.parse import urlencode

import numpy as np
import psutil
import uvloop

from loadtest import client, machine, photos, plots, running
from loadtest.answers import WrongAnswerError
from loadtest.arguments import names
from loadtest.client import ClosedLoop, Photo
from loadtest.plots import Line, Panel
from loadtest.running import StartError

MANIFEST = "manifest.json"
LARGEST_UPLOAD = str(64 * 2**20)
FEW, LARGE_PX = 3, 2000
"""So many photos are enough of those that are at least so wide: they take memory."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setup:
    """What one step is measured with."""

    connections: int = 32
    settings: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    """pixels of the photos; None: as they are"""
    copies: int = 0
    """of the model, each under a name of its own, that requests go to in turn; 0: the model itself"""
    model: str | None = None
    """served alone; None: what the options say"""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that grows."""

    label: str
    values: Sequence[int]
    setup: Callable[[int], Setup]
    weighs: bool = False
    """memory and time to start are worth a look"""


DIMENSIONS = {
    "workers": Dimension("HTTP workers", (1, 2, 4, 8), lambda n: Setup(settings={"SERVER_HTTP_WORKERS": str(n)})),
    "connections": Dimension(
        "connections", tuple(2**n for n in range(10)), lambda n: Setup(n, {"SERVER_QUEUE_SIZE": "1024"})
    ),
    "size": Dimension(
        "width of the photo, pixels (height two thirds)",
        (32, 64, 128, 256, 512, 1024, 2048, 3000, 6000),
        lambda n: Setup(8, {"SERVER_MAX_BODY_BYTES": LARGEST_UPLOAD}, (n, max(1, n * 2 // 3))),
    ),
    "batch": Dimension(
        "most images in a batch", (1, 2, 4, 8, 16, 32), lambda n: Setup(64, {"SERVER_MAX_BATCH": str(n)})
    ),
    "models": Dimension("models loaded, requests in turn", (1, 2, 4, 8), lambda n: Setup(copies=n), weighs=True),
    "depth": Dimension(
        "layers of the ResNet", (18, 34, 50, 101, 152), lambda n: Setup(8, model=f"resnet{n}"), weighs=True
    ),
}


def main() -> int:
    """Measure what is missing, and plot; 0: every answer was right."""
    options = _parse()
    try:
        known = _read(options.out)
        _measure(known, options)
        for name in options.dimensions:
            records = sorted((one for one in known if one["dimension"] == name), key=lambda one: int(one["value"]))
            if records:
                plots.save(_panels(DIMENSIONS[name], records), options.out.with_name(f"{options.out.stem}-{name}.svg"))
    except (StartError, WrongAnswerError, OSError, EOFError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(known: list[Record], options: argparse.Namespace) -> None:
    """Add what is missing, to `known` and to the file, as soon as each is measured."""
    done = {(one["dimension"], one["value"]) for one in known}
    steps = [(name, value) for name in options.dimensions for value in DIMENSIONS[name].values]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for number, (name, value) in enumerate(steps, 1):
        setup = DIMENSIONS[name].setup(value)
        title = f"{number:3}/{len(steps)}  {name:12}{value:6}"
        if (name, value) in done:
            print(f"{title}  known", flush=True)
        elif setup.model and not (options.repository / setup.model).is_dir():
            command = f"python export/to_onnx.py {setup.model} --random-weights --repository {options.repository}"
            print(f"{title}  missing: {command}", flush=True)
        else:
            record = {"dimension": name, "value": value, **_step(setup, options)}
            known.append(record)
            with options.out.open("a") as lines:
                lines.write(json.dumps(record) + "\n")
            print(f"{title}  {_text(record)}", flush=True)


def _step(setup: Setup, options: argparse.Namespace) -> Record:
    """Start a server and measure.

    Raises:
        StartError, WrongAnswerError, OSError, EOFError: it did not start, or did not answer as it should.
    """
    images = [path.read_bytes() for path in photos.find(options.photos)]
    if setup.size:
        some = images[:FEW] if setup.size[0] >= LARGE_PX else images
        images = [photos.resized(image, *setup.size) for image in some]
    with _models(setup, options) as (repository, names):
        flags = ["--repository", str(repository), *(["--models", ",".join(names)] if names else [])]
        started_s = time.monotonic()
        with running.server(*flags, environment=setup.settings, quiet=True) as (url, process):
            start_s = time.monotonic() - started_s
            targets = [f"{url}/classify?{urlencode({'model': name})}" for name in names] or [f"{url}/classify"]
            return {"start_s": start_s, **uvloop.run(_drive(targets, images, process, setup.connections, options))}


async def _drive(
    targets: Sequence[str],
    images: Sequence[bytes],
    process: psutil.Process,
    connections: int,
    options: argparse.Namespace,
) -> Record:
    asked = [await client.ask_alone(target, images) for target in targets]
    in_turn: list[Photo] = [photo for same in zip(*(sent for _, sent in asked), strict=True) for photo in same]
    window = await ClosedLoop(targets[0], in_turn).run(
        connections, options.warm_up, options.seconds, lambda: machine.read_meters(running.tree(process))
    )
    if window.faults:
        raise WrongAnswerError(window.faults.most_common(1)[0][0])
    count = len(window.latencies_s)
    if not count:
        raise WrongAnswerError(f"no answer within {options.seconds:g} s: give it more --seconds")
    used = window.after.since(window.before)
    cpu_s = window.seconds * (psutil.cpu_count() or 1)
    p50_s, p99_s = np.percentile(window.latencies_s, (50, 99)).tolist()
    return {
        "images_per_s": count / window.seconds,
        "p50_ms": 1e3 * p50_s,
        "p99_ms": 1e3 * p99_s,
        "server_cpu_ms": 1e3 * used.server / count,
        "client_cpu_ms": 1e3 * used.client / count,
        "server_share": used.server / cpu_s,
        "others_share": max(0.0, used.machine - used.server - used.client) / cpu_s,
        "mean_batch": harmonic_mean(window.batch_sizes),  # a batch of n is reported n times
        "memory_mb": _memory_mb(process),
        "image_kb": sum(map(len, images)) / len(images) / 1e3,
        "images": count,
    }


@contextmanager
def _models(setup: Setup, options: argparse.Namespace) -> Generator[tuple[Path, list[str]]]:
    """A repository, and the models of it to serve and to ask; none: its default."""
    name = setup.model or options.model
    if not setup.copies:
        yield options.repository, [name] if name else []
        return
    folders = [path.parent.resolve() for path in options.repository.glob(f"{name or '*'}/*/{MANIFEST}")]
    if len({folder.parent for folder in folders}) != 1:
        raise StartError(f"{options.repository}: name the model that is to be copied by --model")
    original = max(folders, key=lambda folder: int(folder.name))
    manifest = json.loads((original / MANIFEST).read_text())
    with tempfile.TemporaryDirectory() as made:
        names = [f"copy{number}" for number in range(setup.copies)]
        for copy in names:
            folder = Path(made) / copy / original.name
            folder.mkdir(parents=True)
            (folder / manifest["file"]["name"]).symlink_to(original / manifest["file"]["name"])
            (folder / MANIFEST).write_text(json.dumps(manifest | {"name": copy}))
        yield Path(made), names


def _memory_mb(process: psutil.Process) -> float:
    """Proportional set sizes added up: a page that n processes share counts 1/n for each."""
    total = 0
    for member in running.tree(process):
        with suppress(psutil.NoSuchProcess):
            total += member.memory_full_info().pss
    return total / 2**20


def _text(record: Record) -> str:
    return (
        f"{record['images_per_s']:8.1f} images/s  p50 {record['p50_ms']:7.1f}  p99 {record['p99_ms']:7.1f} ms"
        f"  {record['server_cpu_ms']:7.2f} CPU-ms  server {record['server_share']:4.0%}"
        f"  others {record['others_share']:4.0%}  batch {record['mean_batch']:4.1f}  {record['memory_mb']:5.0f} MB"
    )


def _read(path: Path) -> list[Record]:
    """What is known; a last line that was cut off is dropped from the file."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def _panels(dimension: Dimension, records: Sequence[Record]) -> list[Panel]:
    def line(label: str, key: str, style: str = "o-", *, right: bool = False) -> Line:
        values = [float(one["value"]) for one in records]
        return Line(label, values, [float(one[key]) for one in records], style, right)

    speed = [line("images/s", "images_per_s"), line("CPU-ms an image", "server_cpu_ms", "s--", right=True)]
    delay = [line("p50", "p50_ms", "o--"), line("p99", "p99_ms")]
    panels = [
        Panel(dimension.label, "images/s", speed, log_x=True, right_label="CPU-ms an image"),
        Panel(dimension.label, "latency, ms", delay, log_x=True, log_y=True),
    ]
    if dimension.weighs:
        weight = [line("memory", "memory_mb"), line("until ready", "start_s", "s--", right=True)]
        panels.append(Panel(dimension.label, "memory of all processes, MB", weight, log_x=True, right_label="s"))
    return panels


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="growth.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dimensions",
        type=names(list(DIMENSIONS)),
        default=list(DIMENSIONS),
        metavar="D,D,…",
        help=f"of {', '.join(DIMENSIONS)}",
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="FOLDER")
    parser.add_argument("--model", metavar="NAME", help="if not the server's default; not for depth")
    parser.add_argument("--photos", type=Path, default=photos.FOLDER, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=5, metavar="S", help="of each step (default 5)")
    parser.add_argument("--warm-up", type=float, default=1, metavar="S", help="before each (default 1)")
    parser.add_argument("--out", type=Path, default=Path("docs/measurements/growth.jsonl"), metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
