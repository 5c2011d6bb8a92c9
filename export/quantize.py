"""The command that makes a model of lower precision from an FP32 one: `python export/quantize.py NAME`."""

import export.interrupts  # noqa: F401 before the slow imports

# isort: split

import argparse
import sys
from functools import partial
from pathlib import Path

from export import command, console, convert, lowering, precision
from export.backends import RUNTIMES
from export.options import add_preprocessing, stated
from export.precision import METHODS, PRECISIONS, TARGETS, Wanted
from server import cpus

FEW_IMAGES = 100
"""ONNX Runtime's guide asks for several hundred images to calibrate on."""


def _run(options: argparse.Namespace) -> None:
    root: Path = options.repository
    wanted = Wanted(
        options.precision,
        precision.choose_backend(options.precision, options.backend),
        options.target or precision.this_machine(),
        (options.method,) if options.method else METHODS,
        precision.choose_images(options.precision, options.calibration, options.images),
        options.min_agreement,
        options.accept_undecided,
    )
    if options.precision == "int8" and wanted.target == "x86-vnni" and not cpus.flags() & cpus.VNNI:
        console.warn("This CPU has no VNNI: a CPU with VNNI will answer differently from what is measured here.")
    source = convert.find_or_export(root, options.network, options.weights_dir, stated=stated(options))
    name = options.name or wanted.name(source.name)
    if command.is_there(root, name, wanted.fingerprint(source), "there already"):
        return
    command.prepare(root, name, source.file.size_bytes)
    published = lowering.lower(
        root,
        source,
        name,
        wanted,
        threads=options.threads,
        labels_from=options.labels_from,
        seconds=options.seconds,
    )
    console.say(f"{name} version {published.version}: {console.folder(root, published)}")
    command.tell_of_calibration(published)
    if published.conversion and published.conversion.verdict == "undecided":
        console.warn("Whether it agrees often enough is undecided; it was added because of --accept-undecided.")
    calibration = published.conversion and published.conversion.calibration
    if calibration and calibration.images < FEW_IMAGES:
        console.warn(f"Calibrated on {calibration.images} images only: several hundred are better.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quantize.py",
        description="Make a model of lower precision, compare it with FP32, and add it to the repository if it agrees.",
    )
    parser.add_argument(
        "network",
        metavar="SOURCE",
        help="an FP32 model of the repository; one of the zoo, of the hub or in a folder is exported first",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="int8", help="precision to make; int8 if not given")
    parser.add_argument(
        "--calibration", type=Path, metavar="FOLDER", help="images like those to classify; INT8 needs them"
    )
    command.add(
        parser,
        "--images",
        default=None,
        help="images to compare on; if not given, the halves of --calibration, each in turn",
    )
    command.add(parser, "--labels-from")
    parser.add_argument("--target", choices=TARGETS, help="hardware that will run it; if not given, this machine's CPU")
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="how to find the ranges of activations; if not given, moving-average, unless another is clearly closer to"
        " FP32",
    )
    parser.add_argument(
        "--min-agreement",
        type=command.PERCENT,
        metavar="PERCENT",
        default=99.0,
        help="least top-1 agreement with FP32; 99 if not given",
    )
    parser.add_argument(
        "--accept-undecided",
        action="store_true",
        help="add the model even if there are too few images to tell whether it agrees",
    )
    parser.add_argument(
        "--backend", choices=RUNTIMES, help="runtime to make it for; if not given, onnx, or openvino for bf16"
    )
    command.add(
        parser, "--name", help="name in the repository; if not given, NAME-int8, NAME-int8-gpu, NAME-bf16 or NAME-fp16"
    )
    command.add(parser, "--repository", "--weights-dir", "--threads", "--seconds")
    add_preprocessing(parser)
    return parser


main = partial(command.main, _parser, _run)

if __name__ == "__main__":
    sys.exit(main())
