"""Makes a model of lower precision from an FP32 one, and publishes it if both agree often enough."""

from pathlib import Path

from export import console, convert, repository
from export.comparison import Answers
from export.precision import Wanted
from export.report import REFERENCE_RUNTIME, Questions, Subject, ask, compare
from export.samples import LabelsFrom
from models.manifest import Manifest


def lower(
    root: Path, source: Manifest, name: str, wanted: Wanted, *, threads: int, labels_from: LabelsFrom, seconds: float
) -> Manifest:
    """Make a model of lower precision, compare it with FP32, print the report, and publish the model.

    Args:
        root: the repository.
        source: the model in FP32.
        name: of the new one.
        wanted: its precision, its images and its gate.
        threads: of one inference.
        labels_from: source of the images' classes.
        seconds: for measuring speed; 0 skips it.

    Raises:
        ExpectedError: the model cannot be made, or agrees too seldom.
    """
    single = repository.read(root, source)
    lowered = convert.to_lower_precision(source, single, name, wanted)
    reference = Subject(source, single, REFERENCE_RUNTIME)
    shown = lowered.draft.model_copy(update={"version": repository.next_version(root, name)})
    subjects = [[reference, Subject(shown, content, wanted.backend)] for content in lowered.contents]
    with console.step(f"compare on {len(wanted.evaluated)} images"):  # never on a file's own calibration images
        answers = [ask(pair, fold.evaluate, threads) for pair, fold in zip(subjects, wanted.folds, strict=True)]
    questions = Questions(wanted.evaluated, threads, labels_from, seconds=seconds)
    report = compare(subjects[0], questions, [Answers.of_all(parts) for parts in zip(*answers, strict=True)])
    report.show()
    return repository.publish(root, wanted.admit(lowered, source, report), lowered.contents[0])
