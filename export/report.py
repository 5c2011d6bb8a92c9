"""The report on a model's files: answers, accuracy, size and speed beside the FP32 reference, as one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from export import comparison, samples
from export.runtimes import Runtime, load
from export.samples import LabelsFrom
from models.manifest import Accuracy, CropCount, Label, Manifest, Preprocessing

_console = Console(highlight=False)


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
    """Asked of every subject."""
    threads: int
    labels_from: LabelsFrom = "auto"
    crops: Sequence[CropCount] = (1,)
    batch_sizes: Sequence[int] = (1, 4, 8)
    seconds: float = 10
    """For measuring speed, all subjects together; 0 leaves it out."""


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
    max_logit_error: float
    """Largest |logit - the reference's|."""
    accuracy: dict[int, Accuracy]
    """By number of crops; empty where the images' classes are not known."""
    images_per_s: dict[int, float]
    """By batch size; median of the rounds."""
    times_reference: dict[int, float]
    """Speed beside the reference's, by batch size; median of the rounds' ratios."""


class Report(BaseModel):
    """The lines begin with the reference."""

    model_config = ConfigDict(frozen=True)

    images: int
    threads: int
    lines: tuple[Line, ...]

    def show(self) -> None:
        """Print one table."""
        _console.print(_table(self))


def compare(subjects: Sequence[Subject], questions: Questions) -> Report:
    """Compare subjects with the first of them, the reference; all have its preprocessing and labels.

    Raises:
        ExpectedError: a subject cannot be run, an image cannot be read, or its class is not known as it should be.
    """
    preprocessing: Preprocessing = subjects[0].model.preprocessing
    labels: Sequence[Label] = subjects[0].model.labels
    runs = [load(subject.content, subject.runtime, questions.threads) for subject in subjects]
    classes = samples.classes(questions.images, labels, questions.labels_from)
    answers = comparison.answers(runs, questions.images, preprocessing, max(questions.crops))
    rounds: list[list[comparison.Pace]] = []
    if questions.seconds:
        few = samples.pixels(questions.images[: max(questions.batch_sizes)], preprocessing)[:, 0]
        rounds = comparison.paces(runs, few, questions.batch_sizes, questions.seconds)
    lines = []
    for at, (subject, answered) in enumerate(zip(subjects, answers, strict=True)):
        ours, reference = ([paces[position] for paces in rounds] for position in (at, 0))
        lines.append(
            Line(
                model=subject.model.name,
                version=subject.model.version,
                precision=subject.model.precision,
                runtime=subject.runtime,
                size_bytes=len(subject.content),
                top1_agreement=answered.top1_agreement(answers[0]),
                max_logit_error=answered.max_logit_error(answers[0]),
                accuracy={} if classes is None else {n: answered.accuracy(classes, n) for n in questions.crops},
                images_per_s=comparison.medians(ours) if rounds else {},
                times_reference=comparison.ratios(ours, reference) if rounds else {},
            )
        )
    return Report(images=len(questions.images), threads=questions.threads, lines=tuple(lines))


def _table(report: Report) -> Table:
    first = report.lines[0]
    table = Table(caption=f"{report.images} images, {report.threads} threads; compared with the first line")
    for heading in ("model", "precision", "runtime"):
        table.add_column(heading)
    headings = ["MB", "agreement", "logit error"]
    headings += [f"top-1 %, {crops} crop{'s' if crops > 1 else ''}" for crops in first.accuracy]
    headings += [f"images/s, batch {size}" for size in first.images_per_s]
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in report.lines:
        cells = [f"{line.model} {line.version}", line.precision, line.runtime, f"{line.size_bytes / 1e6:.1f}"]
        cells += [f"{line.top1_agreement:.1%}", f"{line.max_logit_error:.2g}"]
        cells += [f"{measured.top1:.1f}" for measured in line.accuracy.values()]
        cells += [f"{pace:.1f} (x{line.times_reference[size]:.2f})" for size, pace in line.images_per_s.items()]
        table.add_row(*cells)
    return table
