"""The report on a model's files: answers, accuracy, size and speed beside the FP32 reference, as one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from export import agreement, backends, comparison, confidence, diagrams, repository, samples
from export.backends import RUNTIMES, Runtime
from export.comparison import SURE, Answers
from export.confidence import Curve
from export.console import print_table
from export.samples import LabelsFrom
from models.errors import ExpectedError
from models.intervals import clopper_pearson
from models.manifest import Accuracy, CropCount, Manifest, Miscalibration
from server.engine.backends import Backend

REFERENCE_RUNTIME: Runtime = "onnx"
"""The runtime that the export compared with PyTorch; the FP32 file on it is the reference."""


class ReportError(ExpectedError):
    """A model has nothing to be compared with, or its diagrams cannot be drawn."""


@dataclass(frozen=True)
class Subject:
    """One file on one runtime."""

    model: Manifest
    content: bytes
    runtime: Runtime


@dataclass(frozen=True)
class Questions:
    """What to find out."""

    images: Sequence[Path]
    """Run on every subject."""
    threads: int
    labels_from: LabelsFrom = "auto"
    crops: Sequence[CropCount] = (1,)
    batch_sizes: Sequence[int] = (1, 4, 8)
    seconds: float = 10
    """For measuring speed, all subjects together; 0 skips it."""


class Line(BaseModel):
    """What was found out about one subject."""

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    precision: str
    runtime: Runtime
    size_bytes: int
    top1_agreement: float
    """Share of the images with the reference's best class."""
    agreeing: int
    """Number of these images."""
    sure_disagreements: int
    """Images with another best class although the reference was sure of its own."""
    max_logit_error: float
    """Largest |logit - the reference's|."""
    accuracy: dict[int, Accuracy]
    """By number of crops; empty if the images' classes are not known."""
    images_per_s: dict[int, float]
    """By batch size; median of the rounds."""
    times_reference: dict[int, float]
    """Speed as a multiple of the reference's, by batch size; median of the rounds' ratios."""
    miscalibration: Miscalibration | None = None
    """With one crop; None, like `curve`, if the images' classes are not known or the activation is not softmax."""
    curve: Curve | None = None


class Report(BaseModel):
    """What was found out about all subjects; the first line is the reference."""

    model_config = ConfigDict(frozen=True)

    images: int
    threads: int
    lines: tuple[Line, ...]

    def show(self) -> None:
        """Print one table."""
        print_table(_table(self))

    def draw(self, folder: Path) -> Path:
        """Draw how reliable the probabilities are; see `diagrams.write`.

        Raises:
            ReportError: the images' classes are not known.
        """
        lines = [(line.curve, line.miscalibration) for line in self.lines]
        drawn = [(curve, found) for curve, found in lines if curve and found]
        if not drawn:
            raise ReportError("--report draws how reliable probabilities are: it needs images whose one class is known")
        rows = [("", "expected calibration error", "negative log likelihood")]
        rows += [(curve.label, f"{found.ece:.2%}", f"{found.nll:.4f}") for curve, found in drawn]
        title = f"{self.lines[-1].model} version {self.lines[-1].version}"
        tables = [diagrams.Figures(f"{self.images} images", rows)]
        return diagrams.write(folder, title, tables, [curve for curve, _ in drawn])


def beside_fp32(root: Path, name: str, version: int | None, runtimes: Sequence[Runtime] | None) -> list[Subject]:
    """Find a model and what to compare: its FP32 file on the reference runtime, then both files on each runtime.

    Args:
        root: the repository.
        name: of the model.
        version: None: the newest.
        runtimes: None: the model's own.

    Raises:
        ExpectedError: one of them is not in the repository, or is no ONNX file.
    """
    model = repository.get(root, name, version)
    source, own = _source_of(root, model), _runtime_of(model)
    pairs = [(source, REFERENCE_RUNTIME)]
    pairs += [(one, runtime) for runtime in runtimes or [own] for one in (source, model)]
    once = {(one.name, one.version, runtime): (one, runtime) for one, runtime in pairs}
    return [Subject(one, repository.read(root, one), runtime) for one, runtime in once.values()]


def _source_of(root: Path, model: Manifest) -> Manifest:
    """Return the FP32 model that a model of lower precision was made from; for an FP32 model, itself."""
    if model.conversion is None:
        return model
    source = repository.get(root, model.conversion.source, model.conversion.source_version)
    if source.file.sha256 != model.conversion.source_sha256:
        raise ReportError(f"{source.name} version {source.version} is not the file that {model.name} was made from")
    return source


def _runtime_of(model: Manifest) -> Runtime:
    for runtime in RUNTIMES:
        if model.backend == runtime:
            return runtime
    raise ReportError(f"{model.name} version {model.version} is a file of {model.backend}, not of ONNX")


def ask(subjects: Sequence[Subject], paths: Sequence[Path], threads: int, crops: CropCount = 1) -> list[Answers]:
    """Run images on subjects that share the first one's preprocessing.

    Raises:
        ExpectedError: a subject cannot be run, or an image cannot be read.
    """
    return comparison.answers(_load(subjects, threads), paths, subjects[0].model, crops)


def _load(subjects: Sequence[Subject], threads: int) -> list[Backend]:
    return [backends.load(one.model, one.content, one.runtime, threads) for one in subjects]


def compare(subjects: Sequence[Subject], questions: Questions, answered: Sequence[Answers] | None = None) -> Report:
    """Compare subjects with the first of them, the reference; all have its preprocessing and labels.

    Args:
        subjects: what to compare.
        questions: what to find out.
        answered: answers to the questions' images, if they are known already.

    Raises:
        ExpectedError: a subject cannot be run, an image cannot be read, or its class cannot be read as requested.
    """
    preprocessing, labels = subjects[0].model.preprocessing, subjects[0].model.labels
    classes = samples.classes(questions.images, labels, questions.labels_from)
    answers = answered or ask(subjects, questions.images, questions.threads, max(questions.crops))
    images_per_s: list[dict[int, float]] = [{} for _ in subjects]
    times_reference = images_per_s
    if questions.seconds:
        sizes = questions.batch_sizes
        few = samples.pixels(questions.images[: max(sizes)], preprocessing)[:, 0]
        paces = comparison.paces(_load(subjects, questions.threads), few, sizes, questions.seconds)
        images_per_s, times_reference = (
            [dict(zip(sizes, row, strict=True)) for row in figures.tolist()]
            for figures in (np.median(paces, axis=0), comparison.times_first(paces))
        )
    lines = tuple(
        Line(
            model=subject.model.name,
            version=subject.model.version,
            precision=subject.model.precision,
            runtime=subject.runtime,
            size_bytes=len(subject.content),
            top1_agreement=its.top1_agreement(answers[0]),
            agreeing=round(its.top1_agreement(answers[0]) * len(questions.images)),
            sure_disagreements=its.sure_disagreements(answers[0]),
            max_logit_error=its.max_logit_error(answers[0]),
            accuracy={} if classes is None else {n: its.accuracy(classes, n) for n in questions.crops},
            images_per_s=images_per_s[at],
            times_reference=times_reference[at],
            **_calibration(subject, its, classes),
        )
        for at, (subject, its) in enumerate(zip(subjects, answers, strict=True))
    )
    return Report(images=len(questions.images), threads=questions.threads, lines=lines)


def _calibration(subject: Subject, answered: Answers, classes: NDArray[np.int64] | None) -> dict[str, Any]:
    if classes is None or answered.activation != "softmax":
        return {}
    label = f"{subject.model.name} version {subject.model.version}, {subject.runtime}"
    return {
        "miscalibration": confidence.miscalibration(answered.logits[:, 0], classes),
        "curve": confidence.curve(label, answered.probabilities()[:, 0], classes),
    }


def _table(report: Report) -> Table:
    first = report.lines[0]
    caption = [f"{report.images} images, {report.threads} threads; compared with the first file"]
    caption.append(f"though sure: another best class where its two best differ by more than {SURE:g}")
    if not first.accuracy:
        caption.append("no accuracy: not every image's class is known; --labels-from folders names one that is not")
    table = Table(caption="\n".join(caption))
    for heading in ("model", "precision", "runtime"):
        table.add_column(heading)
    headings = ["MB", "agreement", "95 %", "though sure", "logit error"]
    headings += [f"top-1 %, {crops} crop{'s' if crops > 1 else ''}" for crops in first.accuracy]
    headings += [f"images/s, batch {size}" for size in first.images_per_s]
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in report.lines:
        cells = [f"{line.model} {line.version}", line.precision, line.runtime, f"{line.size_bytes / 1e6:.1f}"]
        interval = agreement.in_percent(clopper_pearson(line.agreeing, report.images))
        certainty = ["", ""] if line is first else [interval, str(line.sure_disagreements)]
        cells += [f"{line.top1_agreement:.1%}", *certainty, f"{line.max_logit_error:.2g}"]
        cells += [f"{measured.top1:.1f}" for measured in line.accuracy.values()]
        cells += [f"{pace:.1f} (x{line.times_reference[size]:.2f})" for size, pace in line.images_per_s.items()]
        table.add_row(*cells)
    return table
