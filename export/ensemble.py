"""The command that makes one model of several: `python export/ensemble.py NAME MEMBER MEMBER...`."""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from export import command, comparison, repository, samples
from export.comparison import Answers
from export.reference import image_paths
from export.runtimes import available_threads, load
from export.samples import LABELS_FROM
from export.to_onnx import PHOTOS
from export.verify import find, read_model
from models.errors import ExpectedError
from models.manifest import Accuracy, Ensemble, Manifest, Member

_console = Console(highlight=False)


class EnsembleError(ExpectedError):
    """The members do not go together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    return command.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    root: Path = options.repository
    members = [_find_member(root, text) for text in options.members]
    _check(members)
    paths = image_paths(options.images)
    labels = members[0].labels
    classes = samples.classes(paths, labels, options.labels_from)
    answers = [_answers(root, member, paths) for member in members]
    # Log-probabilities are logits: the mean's softmax is the mean.
    together = Answers(np.log(np.mean([answer.probabilities() for answer in answers], axis=0)).astype(np.float32))
    accuracies: list[Accuracy | None] = [
        None if classes is None else answer.accuracy(classes) for answer in (*answers, together)
    ]
    best = np.stack([answer.logits[:, 0].argmax(1) for answer in answers])
    draft = Ensemble(
        name=options.name,
        version=1,
        created=datetime.now(UTC),
        members=tuple(
            Member(name=member.name, version=member.version, sha256=member.file.sha256, accuracy=accuracy)
            for member, accuracy in zip(members, accuracies[:-1], strict=True)
        ),
        labels=labels,
        top_k=members[0].top_k,
        images=len(paths),
        agreement=float((best == best[0]).all(0).mean()),
        accuracy=accuracies[-1],
        fingerprint=hashlib.sha256("".join(member.file.sha256 for member in members).encode()).hexdigest(),
    )
    _show(repository.publish(root, draft), root)


def _find_member(root: Path, text: str) -> Manifest:
    name, _, version = text.partition(":")
    if version and not version.isdecimal():
        raise EnsembleError(f"{text} is no member: write NAME, or NAME:VERSION")
    return find(root, name, int(version) if version else None)


def _check(members: Sequence[Manifest]) -> None:
    for member in members:
        if member.labels != members[0].labels:
            raise EnsembleError(f"{member.name} has other classes than {members[0].name}")
        if member.backend == "tensorrt":
            raise EnsembleError(f"{member.name} is a TensorRT engine: name the ONNX model that it was made from")
    if len({(member.name, member.version) for member in members}) < max(2, len(members)):
        raise EnsembleError("an ensemble has at least two members, and none twice")


def _answers(root: Path, member: Manifest, paths: Sequence[Path]) -> Answers:
    """What a member says to each image, which it sees in its own preprocessing."""
    run = load(read_model(root, member), "openvino" if member.backend == "openvino" else "onnx", available_threads())
    (answers,) = comparison.answers([run], paths, member.preprocessing)
    return answers


def _show(ensemble: Ensemble, root: Path) -> None:
    table = Table("model", "top-1 %", "top-5 %")
    rows = [(f"{member.name} version {member.version}", member.accuracy) for member in ensemble.members]
    for name, accuracy in (*rows, (f"{ensemble.name} version {ensemble.version}", ensemble.accuracy)):
        figures = (accuracy.top1, accuracy.top5) if accuracy else (None, None)
        table.add_row(name, *("" if figure is None else f"{figure:.1f}" for figure in figures))
    _console.print(table)
    _console.print(f"{ensemble.images} images; all members agree on {ensemble.agreement:.1%} of them")
    _console.print(f"written to {root / ensemble.name / str(ensemble.version)}", soft_wrap=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ensemble.py", description="Serve several models as one: the mean of their probabilities."
    )
    parser.add_argument("name", metavar="NAME", help="of the ensemble")
    parser.add_argument(
        "members", nargs="+", metavar="MEMBER", help="NAME or NAME:VERSION of a model in the repository"
    )
    parser.add_argument("--repository", type=Path, metavar="DIR", default=Path("model_repository"))
    parser.add_argument("--images", type=Path, metavar="FOLDER", default=PHOTOS, help="images to measure on")
    parser.add_argument(
        "--labels-from", choices=LABELS_FROM, default="auto", help="where the images' classes are known from"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
