"""The command that exports a network to the model repository: `python export/to_onnx.py NAME`."""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export import command, repository
from export.recipe import OPSET, TOOLS, Recipe, plan
from models import zoo
from models.architectures import SHORTCUTS, STRIDES_IN
from models.manifest import Entry, Manifest, ModelFile, ModelName, Parity
from models.weights import MIRROR_VARIABLE, UnreachableError

MODEL_FILE_NAME = "model.onnx"
PHOTOS = Path(__file__).parent / "photos"
"""Photographs that come with the project, free to use: see the README there."""

_console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    return command.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    try:
        _export(options.network or zoo.DEFAULT, options)
    except UnreachableError as error:
        if options.network or options.name:
            raise
        print(f"{error}\nExporting {zoo.OFFLINE_DEFAULT} instead, whose weights are installed.", file=sys.stderr)
        _export(zoo.OFFLINE_DEFAULT, options)


def _export(network_name: str, options: argparse.Namespace) -> None:
    recipe = recipe_of(network_name, options)
    name = options.name or network_name
    publish(options, name, recipe.fingerprint(), lambda: _convert_obtained(recipe, name, options))


def _convert_obtained(recipe: Recipe, name: str, options: argparse.Namespace) -> tuple[Manifest, bytes]:
    return convert(recipe, name, recipe.obtain_weights(options.weights_dir), options.check_images)


def recipe_of(network_name: str, options: argparse.Namespace) -> Recipe:
    """Read what to export from the options of `add_recipe`.

    Raises:
        ExpectedError: as `plan`.
    """
    return plan(
        network_name,
        checkpoint=options.weights,
        random=options.random_weights,
        num_classes=options.num_classes,
        labels_file=options.labels,
        shortcut=options.shortcut,
        stride_in=options.stride_in,
        averaged=options.ema,
    )


def publish(
    options: argparse.Namespace, name: str, fingerprint: str, make: Callable[[], tuple[Manifest, bytes]]
) -> None:
    """Make a model and add it to the repository, unless it is there, and print which of both it was.

    Raises:
        ExpectedError: as `make`, or the repository cannot be written.
    """
    if known := repository.find(options.repository, name, fingerprint):
        folder = _folder(options.repository, known)
        _console.print(f"{name} is already exported as version {known.version}: {escape(folder)}", soft_wrap=True)
        return
    started = time.monotonic()
    published = repository.publish(options.repository, *make())
    _report(published, _folder(options.repository, published), time.monotonic() - started)


def convert(recipe: Recipe, name: str, weights_file: Path | None, images: Path) -> tuple[Manifest, bytes]:
    """Make the model file of a recipe, proven to compute what PyTorch computes on the images of a folder.

    Returns:
        The manifest, whose version is not decided yet, and the ONNX file's content.

    Raises:
        ExpectedError: a checkpoint does not fit, an image cannot be read, or parity fails.
    """
    with step("load the network"):
        # These import torch, which takes seconds: not for an error above or an export that is there already.
        from export import graph, parity
        from export.reference import reference_images

        preprocessing = recipe.entry.preprocessing
        photos = reference_images(images, preprocessing)
        network = recipe.build(weights_file)
    with step("export to ONNX"):
        model = graph.to_onnx(graph.CompleteGraph(network, preprocessing, recipe.top_k), preprocessing.crop, OPSET)
    with step("compare with PyTorch"):
        measured = parity.check(model, network, preprocessing, photos)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return describe(recipe, name, weights_file, parameters, model, measured), model


def describe(
    recipe: Recipe, name: str, weights_file: Path | None, parameters: int, model: bytes, measured: Parity
) -> Manifest:
    """Write down all that is known about an ONNX file; its version is not decided yet."""
    return Manifest(
        name=name,
        version=1,
        created=datetime.now(UTC),
        architecture=recipe.architecture,
        parameters=parameters,
        weights=recipe.describe_weights(weights_file),
        published_accuracy=recipe.published_accuracy,
        preprocessing=recipe.entry.preprocessing,
        num_classes=recipe.num_classes,
        top_k=recipe.top_k,
        backend="onnx",
        precision="fp32",
        opset=OPSET,
        file=ModelFile(name=MODEL_FILE_NAME, sha256=hashlib.sha256(model).hexdigest(), size_bytes=len(model)),
        parity=measured,
        tools=TOOLS,
        fingerprint=recipe.fingerprint(),
        labels=recipe.labels,
    )


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show that a step is under way, and then how long it took."""
    started = time.monotonic()
    with _console.status(what):
        yield
    _console.print(f"[green]✓[/] {what} [dim]{time.monotonic() - started:.1f} s[/]")


def show(published: Manifest, rows: Mapping[str, str]) -> None:
    """Print what is known about a model that was added to the repository, a row for each fact."""
    table = Table(show_header=False)
    for row in rows.items():
        table.add_row(*row)
    _console.print(table)
    if published.weights.random:
        _console.print("[yellow]Its weights are random: its answers mean nothing.[/]")


def _folder(root: Path, known: Entry) -> str:
    return str(root / known.name / str(known.version))


def _report(manifest: Manifest, folder: str, seconds: float) -> None:
    rows = {
        "model": f"{manifest.name} version {manifest.version}",
        "parameters": f"{manifest.parameters / 1e6:.2f} million",
        "file": f"{escape(folder)}/{manifest.file.name}, {manifest.file.size_bytes / 1e6:.1f} MB",
        "time": f"{seconds:.1f} s",
    }
    if parity := manifest.parity:
        rows |= {
            "compared on": f"{parity.images} images, {parity.real_images} of them photos",
            "logit error": f"{parity.max_logit_error:.1e} of the largest, {parity.max_logit_error_allowed:.0e} allowed",
            "top-1 agreement": f"{parity.top1_agreement:.1%}",
        }
    show(manifest, rows)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="to_onnx.py",
        description="Export a network to ONNX, compare it with PyTorch, and add it to the model repository.",
        epilog=f"{MIRROR_VARIABLE} in the environment: URL of a mirror to fetch official weights from.",
    )
    parser.add_argument(
        "network",
        nargs="?",
        metavar="NAME",
        help=f"one of {', '.join(zoo.ENTRIES)}; {zoo.DEFAULT} if not given ({zoo.OFFLINE_DEFAULT} if that is offline)",
    )
    add_recipe(parser)
    return parser.parse_args(arguments)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the options that say with which parameters and classes a network is exported, and where to."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", type=Path, metavar="FILE", help="your checkpoint: .pth, .th, .pt or .safetensors")
    source.add_argument("--random-weights", action="store_true", help="an untrained network, with the same seed always")
    parser.add_argument("--ema", action="store_true", help="from your checkpoint, the moving averages of the weights")
    parser.add_argument(
        "--weights-dir", type=Path, metavar="DIR", default=Path("weights"), help="where downloads are kept"
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="text with a label a line, or a JSON list")
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="how many classes; without labels, they are numbered"
    )
    parser.add_argument("--shortcut", choices=SHORTCUTS, help="of a residual network, where it is not the usual one")
    parser.add_argument(
        "--stride-in", choices=STRIDES_IN, help="which convolution of a bottleneck, where it is not the usual one"
    )
    parser.add_argument("--name", type=model_name, metavar="AS", help="name in the repository, if not the usual one")
    parser.add_argument("--repository", type=Path, metavar="DIR", default=Path("model_repository"))
    parser.add_argument("--check-images", type=Path, metavar="FOLDER", default=PHOTOS, help="photos to compare on")


def model_name(text: str) -> str:
    """Read the name of a model from the command line."""
    try:
        return TypeAdapter[str](ModelName).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError(f"{text} is no model name: small letters, digits and _ . @ -") from None


if __name__ == "__main__":
    sys.exit(main())
