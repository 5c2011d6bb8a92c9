"""The command that calibrates a model's probabilities: `python export/calibrate.py NAME --images FOLDER`."""

import export.interrupts  # noqa: F401 before the slow imports

# isort: split

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.table import Table

from export import calibration, command, console, diagrams, repository
from export.calibration import Calibrated, Wanted
from export.confidence import METHODS
from export.samples import readable

FEW_IMAGES = 400
"""One quarter of the images decides the temperature, another the sets."""


def _run(options: argparse.Namespace) -> None:
    root: Path = options.repository
    source = calibration.find(root, options.name, options.version, options.temperature)
    if options.report:
        diagrams.require()
    wanted = Wanted(
        readable(options.images),
        options.labels_from,
        options.temperature,
        options.sets,
        options.keep_known / 100,
        readable(options.unknown) if options.unknown else None,
    )
    if command.is_there(root, source.name, wanted.fingerprint(source), "already calibrated"):
        return
    command.prepare(root, source.name, source.file.size_bytes)
    command.warn_of_cpu(source)
    made = calibration.calibrate(source, repository.read(root, source), wanted, options.threads)
    for table in made.tables():
        head, *rows = table.rows
        shown = Table(*head, title=table.heading, title_justify="left")
        for row in rows:
            shown.add_row(*row)
        console.console.print(shown)
    if options.report:
        console.say(f"drawn: {_draw(options.report, made)}")
    made.admit()
    published = repository.publish(root, made.draft, made.content)
    console.say(f"{published.name} version {published.version}: {console.folder(root, published)}")
    if len(wanted.paths) < FEW_IMAGES:
        console.warn(f"Calibrated and measured on {len(wanted.paths)} images only: several hundred are better.")


def _draw(folder: Path, made: Calibrated) -> Path:
    title = f"{made.source.name} version {made.source.version}, calibrated"
    return diagrams.write(folder, title, made.tables(), made.curves())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="calibrate.py",
        description="Fit a temperature, prediction sets and a threshold of 'unknown' on images whose classes are known,"
        " measure them on others, and publish a version of the model that has them, if its probabilities are better.",
    )
    parser.add_argument("name", metavar="NAME", help="a model of the repository")
    parser.add_argument("--version", type=int, metavar="N", help="version of the model; the newest if not given")
    command.add(
        parser,
        "--images",
        default=None,
        required=True,
        help="images like those to classify, 80 at least, with known classes",
    )
    command.add(parser, "--labels-from")
    parser.add_argument(
        "--unknown",
        type=Path,
        metavar="FOLDER",
        help="images of none of the classes, to choose the score by; if not given, it is the largest logit",
    )
    parser.add_argument(
        "--keep-known",
        type=command.number(float, 1e-6, 100 - 1e-6, "percentage above 0 and below 100"),
        metavar="PERCENT",
        default=95.0,
        help="share of the images of known classes that must not be taken for unknown; 95 if not given",
    )
    parser.add_argument("--sets", choices=METHODS, default="lac", help="kind of prediction sets; lac if not given")
    parser.add_argument(
        "--temperature",
        type=command.number(float, 0.01, 100, "temperature from 0.01 to 100"),
        metavar="T",
        help="use this temperature instead of a fitted one, without a gate; 1 leaves probabilities as they are",
    )
    command.add(parser, "--report", "--repository", "--threads")
    return parser


main = partial(command.main, _parser, _run)

if __name__ == "__main__":
    sys.exit(main())
