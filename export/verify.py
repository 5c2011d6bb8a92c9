"""The command that reports on an exported model: `python export/verify.py NAME`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from export import command, repository
from export.reference import image_paths
from export.report import Questions, Report, Subject, compare
from export.runtimes import RUNTIMES, Runtime, available_threads
from export.samples import CROPS, LABELS_FROM
from export.to_onnx import PHOTOS
from models import manifest
from models.errors import ExpectedError
from models.manifest import Manifest, ManifestError

Choice = TypeVar("Choice")

REFERENCE_RUNTIME: Runtime = "onnx"
"""What the export compared with PyTorch: the FP32 file on it is what all is compared with."""


class VerifyError(ExpectedError):
    """There is nothing to verify, or nothing to compare it with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    return command.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    report = _verify(options)
    if options.json:
        print(report.model_dump_json())
    else:
        report.show()


def _verify(options: argparse.Namespace) -> Report:
    root: Path = options.repository
    model = find(root, options.name, options.version)
    source = _source_of(root, model)
    pairs = [(source, REFERENCE_RUNTIME)]
    pairs += [(one, runtime) for runtime in options.backend or [_runtime_of(model)] for one in (source, model)]
    once = {(one.name, one.version, runtime): (one, runtime) for one, runtime in pairs}
    subjects = [Subject(one, read_model(root, one), runtime) for one, runtime in once.values()]
    questions = Questions(
        image_paths(options.images),
        options.threads,
        options.labels_from,
        options.crops,
        options.batch_sizes,
        options.seconds,
    )
    return compare(subjects, questions)


def find(root: Path, name: str, version: int | None = None) -> Manifest:
    """Return the manifest of a model, of its newest version if none is given.

    Raises:
        VerifyError: it is not in the repository.
    """
    versions = repository.newest_first(root / name)
    found = next((known for known in versions if version in (None, known.version)), None)
    if found is None:
        wanted = name if version is None else f"{name} version {version}"
        raise VerifyError(f"{root} has no {wanted}")
    return found


def read_model(root: Path, model: Manifest) -> bytes:
    """Read a model file whose digest is right.

    Raises:
        VerifyError: it is missing or another one.
    """
    try:
        return manifest.read_model_file(root / model.name / str(model.version), model)
    except ManifestError as error:
        raise VerifyError(str(error)) from error


def _source_of(root: Path, model: Manifest) -> Manifest:
    """Return the FP32 model that one of lower precision was made from; an FP32 model is its own."""
    if model.conversion is None:
        return model
    source = find(root, model.conversion.source, model.conversion.source_version)
    if source.file.sha256 != model.conversion.source_sha256:
        raise VerifyError(f"{source.name} version {source.version} is not the file that {model.name} was made from")
    return source


def _runtime_of(model: Manifest) -> Runtime:
    for runtime in RUNTIMES:
        if model.backend == runtime:
            return runtime
    raise VerifyError(f"{model.name} version {model.version} is a file of {model.backend}, not of ONNX")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="verify.py",
        description="Compare an exported model with the FP32 model it was made from: answers, accuracy, size, speed.",
    )
    parser.add_argument("name", metavar="NAME", help="a model of the repository")
    parser.add_argument("--version", type=int, metavar="N", help="the newest if not given")
    parser.add_argument("--repository", type=Path, metavar="DIR", default=Path("model_repository"))
    parser.add_argument("--images", type=Path, metavar="FOLDER", default=PHOTOS, help="images to compare on")
    parser.add_argument(
        "--labels-from",
        choices=LABELS_FROM,
        default="auto",
        help="where the images' classes are known from: their folders' names, or WordNet ids that begin their own",
    )
    parser.add_argument(
        "--crops", type=_some(CROPS, int), metavar="N,...", default=(1,), help="1, 10 or 1,10 crops of an image"
    )
    parser.add_argument(
        "--backend",
        type=_some(RUNTIMES, str),
        metavar="NAME,...",
        help=f"of {', '.join(RUNTIMES)}; if not given, the model's own",
    )
    parser.add_argument("--batch-sizes", type=_sizes, metavar="N,...", default=(1, 4, 8), help="to measure speed with")
    parser.add_argument("--threads", type=int, metavar="N", default=available_threads(), help="of one inference")
    parser.add_argument(
        "--seconds", type=float, metavar="S", default=10, help="for measuring speed, in all; 0 leaves it out"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args(arguments)


def _some(known: Sequence[Choice], read: Callable[[str], object]) -> Callable[[str], tuple[Choice, ...]]:
    """A parser of some of `known`, separated by commas."""

    def parse(text: str) -> tuple[Choice, ...]:
        try:
            return tuple(known[known.index(read(word))] for word in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(map(str, known))}") from None

    return parse


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(map(int, text.split(",")))
    if min(sizes) < 1:
        raise ValueError
    return sizes


if __name__ == "__main__":
    sys.exit(main())
