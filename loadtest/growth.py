"""`python loadtest/growth.py`: how throughput, latency, CPU time and memory grow along one dimension at a time.

Each step starts a server, drives it in a closed loop for some seconds and appends a line to a file. Steps already in
the file are skipped, so a long run can be interrupted and resumed. In the end one plot for each dimension is drawn
beside the file. Machines are noisy, and CPU time per image is steadier than images per second: look at both.

    python loadtest/growth.py                                       # everything, into docs/measurements/growth.jsonl
    python loadtest/growth.py --dimensions batch,connections --seconds 3
"""

import models.missing  # noqa: F401 before imports that may be missing

# isort: split

import argparse
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import uvloop

from loadtest import command, copies, loops, machine, photos, plots, processes
from loadtest.command import LoadTestError, names
from loadtest.loops import Photo, Target
from loadtest.plots import Line, Panel
from loadtest.processes import Serving
from loadtest.results import Figures, Record, read_lines
from models import hints

LARGEST_UPLOAD = str(64 * 2**20)
FEW, LARGE_PX = 3, 2000
"""Of photos at least LARGE_PX wide, only FEW are used, to save memory."""


class Step(Record):
    """The figures for one value: a line of the file."""

    dimension: str
    value: int
    start_s: float
    """from the start to readiness"""
    images_per_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms: float
    client_cpu_ms: float
    server_share: float
    others_share: float
    mean_batch: float
    memory_mb: float
    """of all processes, proportional set sizes"""
    image_kb: float
    images: int


@dataclass(frozen=True, slots=True)
class Setup:
    """The server and load of one step."""

    connections: int = 32
    settings: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    """width and height of the photos in pixels; None: as they are"""
    copies: int = 0
    """copies of the model, under different names, that take turns to be asked; 0: the model itself"""
    model: str | None = None
    """the only model served; None: the one in the options"""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension that grows."""

    label: str
    values: Sequence[int]
    setup: Callable[[int], Setup]
    weighs: bool = False
    """also plot memory and start-up time"""


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
    known = read_lines(Step, options.out)
    _measure(known, options)
    for name in options.dimensions:
        if steps := sorted((one for one in known if one.dimension == name), key=lambda one: one.value):
            plots.save(_panels(DIMENSIONS[name], steps), options.out.with_name(f"{options.out.stem}-{name}.svg"))
    return 0


def _measure(known: list[Step], options: argparse.Namespace) -> None:
    """Measure the missing steps, and add each to `known` and to the file at once."""
    done = {(one.dimension, one.value) for one in known}
    wanted = [(name, value) for name in options.dimensions for value in DIMENSIONS[name].values]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for number, (name, value) in enumerate(wanted, 1):
        setup = DIMENSIONS[name].setup(value)
        title = f"{number:3}/{len(wanted)}  {name:12}{value:6}"
        if (name, value) in done:
            print(f"{title}  known", flush=True)
        elif setup.model and not (options.repository / setup.model).is_dir():
            needed = hints.export("to_onnx", setup.model, "--random-weights", "--repository", str(options.repository))
            print(f"{title}  missing: {needed}", flush=True)
        else:
            figures, step = _step(name, value, setup, options)
            known.append(step)
            step.append(options.out)
            print(f"{title}  {figures}  {step.memory_mb:5.0f} MB", flush=True)


def _step(dimension: str, value: int, setup: Setup, options: argparse.Namespace) -> tuple[Figures, Step]:
    """Start a server and measure.

    Raises:
        LoadTestError, OSError: it did not start, or did not answer as it should.
    """
    images = [path.read_bytes() for path in photos.find(options.photos)]
    if setup.size:
        some = images[:FEW] if setup.size[0] >= LARGE_PX else images
        images = [photos.resized(image, *setup.size) for image in some]
    with _models(setup, options) as (repository, names):
        flags = ["--repository", str(repository), *(["--models", ",".join(names)] if names else [])]
        started_s = time.monotonic()
        with processes.serve(*flags, environment=setup.settings, quiet=True) as server:
            start_s = time.monotonic() - started_s
            urls = [f"{server.url}/classify?{urlencode({'model': name})}" for name in names]
            targets = [Target(url) for url in urls or [f"{server.url}/classify"]]
            figures, memory = uvloop.run(_drive(targets, images, server, setup.connections, options))
    image_kb = sum(map(len, images)) / len(images) / 1e3
    more = {"start_s": start_s, "memory_mb": memory / 2**20, "image_kb": image_kb}
    return figures, Step(dimension=dimension, value=value, **more, **figures.model_dump())


async def _drive(
    targets: Sequence[Target], images: Sequence[bytes], server: Serving, connections: int, options: argparse.Namespace
) -> tuple[Figures, int]:
    """The figures, and the bytes of memory that the server has afterwards."""
    asked = [await loops.ask_alone(target, images) for target in targets]
    in_turn: list[Photo] = [photo for same in zip(*(sent for _, sent in asked), strict=True) for photo in same]
    figures = Figures.of(
        await loops.closed_loop(
            targets[0],
            in_turn,
            connections,
            options.warm_up,
            options.seconds,
            lambda: machine.read_meters(server.members()),
        )
    )
    if figures.faults:
        raise LoadTestError(next(iter(figures.faults)))
    return figures, processes.pss_bytes(server.members())


@contextmanager
def _models(setup: Setup, options: argparse.Namespace) -> Generator[tuple[Path, list[str]]]:
    """A repository, and the names of its models to serve and ask; empty: the default model."""
    name = setup.model or options.model
    if not setup.copies:
        yield options.repository, [name] if name else []
        return
    with copies.made(options.repository, name, setup.copies) as made:
        yield made


def _panels(dimension: Dimension, steps: Sequence[Step]) -> list[Panel]:
    def line(label: str, key: str, style: str = "o-", *, right: bool = False) -> Line:
        return Line(label, [step.value for step in steps], [getattr(step, key) for step in steps], style, right)

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
    parser = command.parser("growth.py", __doc__, seconds=5, warm_up=1)
    known = list(DIMENSIONS)
    parser.add_argument(
        "--dimensions", type=names(known), default=known, metavar="D,D,…", help=f"of {', '.join(known)}"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/measurements/growth.jsonl"), metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main))
