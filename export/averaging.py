"""Ensembles: averages the answers of several models, and measures the result."""

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from export import backends, comparison, repository, samples
from export.comparison import Answers
from export.samples import LabelsFrom
from models.errors import ExpectedError
from models.manifest import Accuracy, Ensemble, Manifest, Member


class EnsembleError(ExpectedError):
    """The members do not go together."""


def find_members(root: Path, names: Sequence[str]) -> list[Manifest]:
    """Find models by NAME or NAME:VERSION.

    Raises:
        ExpectedError: one is not in the repository, or they do not go together.
    """
    members = [repository.get(root, *named(name)) for name in names]
    check_together(members)
    if len({(member.name, member.version) for member in members}) < max(2, len(members)):
        raise EnsembleError("an ensemble has at least two members, and none twice")
    return members


def check_together(members: Sequence[Manifest]) -> None:
    """Refuse models that cannot be served as one.

    Raises:
        EnsembleError: their classes or activations differ, or one is a TensorRT engine.
    """
    for member in members:
        if member.labels != members[0].labels:
            raise EnsembleError(f"{member.name} has other classes than {members[0].name}")
        if member.activation != members[0].activation:
            raise EnsembleError(
                f"{member.name} gives {member.activation} and {members[0].name} {members[0].activation}:"
                " their probabilities have no common mean"
            )
        if member.backend == "tensorrt":
            raise EnsembleError(f"{member.name} is a TensorRT engine: name the ONNX model that it was made from")


def named(text: str) -> tuple[str, int | None]:
    """Read NAME or NAME:VERSION.

    Raises:
        EnsembleError: the text is neither.
    """
    name, _, version = text.partition(":")
    if version and not version.isdecimal():
        raise EnsembleError(f"{text} is no member: write NAME, or NAME:VERSION")
    return name, int(version) if version else None


def fingerprint(members: Sequence[Manifest]) -> str:
    """Digest everything that determines an ensemble, which the images for its figures do not."""
    return repository.digest([member.fingerprint for member in members])


def measure(
    root: Path, name: str, members: Sequence[Manifest], paths: Sequence[Path], labels_from: LabelsFrom
) -> Ensemble:
    """Draft an ensemble, measured on images that each member gets with its own preprocessing.

    Raises:
        ExpectedError: a member cannot be run, an image cannot be read, or its class cannot be read as requested.
    """
    labels = members[0].labels
    classes = samples.classes(paths, labels, labels_from)
    answers = [_answers(root, member, paths) for member in members]
    alone: list[Accuracy | None] = [None for _ in members]
    together = None
    if classes is not None:
        alone = [answer.accuracy(classes) for answer in answers]
        together = comparison.accuracy(np.mean([answer.probabilities()[:, 0] for answer in answers], axis=0), classes)
    best = np.stack([answer.best() for answer in answers])
    return Ensemble(
        name=name,
        version=1,
        created=datetime.now(UTC),
        members=tuple(
            Member(name=member.name, version=member.version, sha256=member.file.sha256, accuracy=accuracy)
            for member, accuracy in zip(members, alone, strict=True)
        ),
        labels=labels,
        top_k=members[0].top_k,
        images=len(paths),
        agreement=float((best == best[0]).all(0).mean()),
        accuracy=together,
        fingerprint=fingerprint(members),
    )


def _answers(root: Path, member: Manifest, paths: Sequence[Path]) -> Answers:
    with closing(backends.load(member, repository.read(root, member))) as backend:
        (answers,) = comparison.answers([backend], paths, member)
    return answers
