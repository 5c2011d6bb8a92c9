"""What the commands in this folder share: options, error reporting and exit codes."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from export import console, expect, interrupts, repository
from export.options import add_preprocessing, as_options, stated
from export.recipe import Recipe, plan
from export.samples import LABELS_FROM, PHOTOS
from models import hub, shards, zoo
from models.architectures import SHORTCUTS, STRIDES_IN
from models.errors import ExpectedError
from models.manifest import Manifest, ModelName, called
from server import cpus

Number = TypeVar("Number", int, float)


def main(
    parser: Callable[[], argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, run, and return the exit code.

    0 is success, 1 an error reported in one line, 2 wrong usage, 130 an interrupt.
    """
    interrupts.raise_them()
    try:
        run(parser().parse_args(arguments))
    except (Exception, KeyboardInterrupt) as error:
        if interrupts.is_behind(error):
            print("interrupted", file=sys.stderr)
            return interrupts.EXIT_CODE
        if isinstance(error, OSError) and error.filename is not None:  # one of the user's files
            error = ExpectedError(f"{error.filename}: {error.strerror}")
        if not isinstance(error, ExpectedError):
            raise
        print(f"error: {console.printable(str(error))}", file=sys.stderr)
        return 1
    return 0


def is_there(root: Path, name: str, fingerprint: str, how: str) -> bool:
    """Whether a version with this fingerprint exists; if so, print `how` it is: "already built"."""
    known = repository.find(root, name, fingerprint)
    if known:
        console.say(f"{name} is {how} as version {known.version}: {console.folder(root, known)}")
    return known is not None


def prepare(root: Path, name: str, needed_bytes: int = 0) -> None:
    """Check, before anything is made, that the repository can take it, and print which version it succeeds.

    Raises:
        ExpectedError: the repository cannot be written, or has no room for `needed_bytes`.
    """
    repository.check_room(root, needed_bytes)
    if known := repository.newest(root, name):
        what = f"{known.architecture} in {known.precision}" if isinstance(known, Manifest) else called(known)
        there = f"{name} has version {known.version} already, {what}"
        console.say(f"{there}: if this succeeds, servers switch to the new version")


def warn_of_cpu(*models: Manifest) -> None:
    """Warn if figures measured on this CPU do not apply to the CPU that a model was made for."""
    for model in models:
        if reason := cpus.why_not(model, cpus.flags()):
            console.warn(f"{model.name} version {model.version} is measured on another CPU: {reason}")


def tell_of_calibration(published: Manifest) -> None:
    """Say that a file keeps the temperature of the calibrated one that it was made from, and nothing else of it."""
    if (known := published.confidence) and not known.sets:
        console.say(
            f"It divides logits by {known.temperature:g}, like the model it was made from. For coverage and reject,"
            f" calibrate it as well: export/calibrate.py {published.name} --images FOLDER"
        )


def add_export(
    root: Path, name: str, fingerprint: str, make: Callable[[], tuple[Manifest, bytes]], needed_bytes: int = 0
) -> None:
    """Make an export and add it to the repository, unless it is there already; print what happened.

    Raises:
        ExpectedError: as `make` and `prepare`.
    """
    if is_there(root, name, fingerprint, "already exported"):
        return
    prepare(root, name, needed_bytes)
    started = time.monotonic()
    published = repository.publish(root, *make())
    rows = {
        "model": f"{published.name} version {published.version}",
        "parameters": f"{published.parameters / 1e6:.2f} million",
        "file": console.file(root, published),
        "time": f"{time.monotonic() - started:.1f} s",
    }
    if parity := published.parity:
        rows |= {
            "compared on": f"{parity.images} images, {parity.real_images} of them photos",
            "logit error": f"{parity.max_logit_error:.1e} of the largest, {parity.max_logit_error_allowed:.0e} allowed",
            "top-1 agreement": f"{parity.top1_agreement:.1%}",
        }
    if expectation := published.expectation:
        error, allowed = expectation.logit_error, expectation.logit_error_allowed
        rows["as expected"] = f"on {expectation.images} images, logits {error:.2%} off, {allowed:.0%} allowed"
    console.show(published, rows)


def size_bytes(checkpoint: Path | None) -> int:
    """Approximate size of a checkpoint's export; 0 without a checkpoint."""
    return sum(file.stat().st_size for file in shards.files(checkpoint)) if checkpoint else 0


def recipe_of(source: str, options: argparse.Namespace) -> Recipe:
    """Read what to export from the options of `add_recipe`, and print what is assumed.

    For the user's own weights, whatever the options do not state of the preprocessing is assumed and printed.

    Raises:
        ExpectedError: as `plan`.
    """
    given = stated(options)
    recipe = plan(
        source,
        checkpoint=options.weights,
        random=options.random_weights,
        num_classes=options.num_classes,
        labels_file=options.labels,
        shortcut=options.shortcut,
        stride_in=options.stride_in,
        averaged=options.ema,
        key=options.key,
        prefix=options.prefix,
        head=options.head,
        allow_pickle=options.allow_pickle,
        stated=given,
        expected=expected(options),
    )
    if options.weights and (assumed := as_options(recipe.preprocessing, given)):
        console.say(f"assumed about how {options.weights.name} was trained (docs/guides/preprocessing.md): {assumed}")
    if options.weights and not options.labels and options.num_classes is None:
        first, *_, last = (label.label for label in recipe.labels)
        console.say(
            f"assumed about its {recipe.num_classes} classes (docs/guides/own_model.md): {first} to {last}, as those of"
            f" {source}'s own weights; --labels FILE names yours, --num-classes {recipe.num_classes} numbers them"
        )
    for note in recipe.notes:
        console.say(note)
    return recipe


def sources() -> str:
    """Say what can be exported, for a command's help."""
    return (
        f"a network of the zoo, such as {zoo.DEFAULT} (docs/reference/networks.md lists them); a model of timm or"
        f" transformers, {hub.PREFIX}OWNER/NAME[@REVISION] on the Hugging Face Hub; or a folder with its files"
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose an export's parameters and classes, and its destination."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="your checkpoint: a state dict, or a training checkpoint that has one",
    )
    source.add_argument(
        "--random-weights", action="store_true", help="an untrained network; its answers are marked as such"
    )
    parser.add_argument(
        "--ema", action="store_true", help="take the moving averages of the weights from your checkpoint"
    )
    parser.add_argument("--key", help="choose one of several networks in your checkpoint: the one under KEY")
    parser.add_argument("--prefix", help="choose one of several networks: its parameters' names begin with PREFIX")
    parser.add_argument(
        "--head", metavar="NAME", help="name of the last layer, if your checkpoint keeps it outside the network"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="names of the classes: text, JSON, CSV, or a training set's folder; if not given, those of the network's"
        " official weights",
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="number of classes; without labels, they are numbered"
    )
    parser.add_argument("--shortcut", choices=SHORTCUTS, help="shortcut of a residual network, if not the usual one")
    parser.add_argument(
        "--stride-in", choices=STRIDES_IN, help="convolution of a bottleneck that has the stride, if not the usual one"
    )
    parser.add_argument(
        "--allow-pickle", action="store_true", help=f"read the tensors of {hub.PICKLE} if there is no {hub.SAFE}"
    )
    add_expectation(parser)
    add(parser, "--name", "--repository", "--weights-dir", "--check-images")
    add_preprocessing(parser)


def expected(options: argparse.Namespace) -> expect.Expected | None:
    """Read the expected logits from the options of `add_expectation`.

    Raises:
        ExpectedError: as `expect.read`.
    """
    return expect.read(options.expect, options.images) if options.expect else None


def add_expectation(parser: argparse.ArgumentParser) -> None:
    """Add the options that give the logits which the export must reproduce."""
    parser.add_argument(
        "--expect",
        type=Path,
        metavar="FILE",
        help="logits of your own model, which the export must give: .npy for --images, or a folder of images and .npy",
    )
    add(parser, "--images", help="the images of --expect")


def add(parser: argparse.ArgumentParser, *options: str, **changes: object) -> None:
    """Add options that several commands share, with `changes` for this command."""
    for option in options:
        parser.add_argument(option, **_SHARED[option] | changes)


def number(kind: Callable[[str], Number], least: float, most: float, what: str) -> Callable[[str], Number]:
    """Make a parser of numbers from `least` to `most`; its error says that a text is no `what`: "batch size"."""

    def parse(text: str) -> Number:
        with suppress(ValueError):
            if least <= (value := kind(text)) <= most:
                return value
        raise argparse.ArgumentTypeError(f"{text} is no {what}")

    return parse


PERCENT = number(float, 0, 100, "percentage from 0 to 100")
BATCH = number(int, 1, 1024, "batch size from 1 to 1024")


def model_name(text: str) -> str:
    """Read an option that names a model to make."""
    try:
        return TypeAdapter[str](ModelName).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError(f"{text} is no model name: lowercase letters, digits and _ . @ -") from None


_SHARED: Mapping[str, dict[str, Any]] = {
    "--repository": {
        "type": Path,
        "metavar": "DIR",
        "default": Path("model_repository"),
        "help": "the model repository; model_repository if not given",
    },
    "--name": {"type": model_name, "metavar": "AS", "help": "name in the repository; if not given, the usual one"},
    "--weights-dir": {
        "type": Path,
        "metavar": "DIR",
        "default": Path("weights"),
        "help": "folder that keeps downloads",
    },
    "--check-images": {
        "type": Path,
        "metavar": "FOLDER",
        "default": PHOTOS,
        "help": "photos to compare on; if not given, the project's",
    },
    "--images": {
        "type": Path,
        "metavar": "FOLDER",
        "default": PHOTOS,
        "help": "images to measure on; if not given, the project's photos",
    },
    "--labels-from": {
        "choices": LABELS_FROM,
        "default": "auto",
        "help": "source of the images' classes: the names of their folders, WordNet ids at the start of their names, or"
        " none; auto if not given",
    },
    "--report": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "draw reliability and risk-coverage diagrams into this folder, as PNG and in a page",
    },
    "--threads": {
        "type": number(int, 1, 1024, "number of threads from 1 to 1024"),
        "metavar": "N",
        "default": cpus.available_cpus(),
        "help": "threads of one inference; all CPUs if not given",
    },
    "--seconds": {
        "type": number(float, 0, 1e6, "number of seconds"),
        "metavar": "S",
        "default": 10,
        "help": "time for measuring speed; 0 skips it",
    },
}
