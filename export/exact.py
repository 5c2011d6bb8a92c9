"""The members of an exact cascade: a network in INT8, asked first, and in FP32, asked if INT8 is not sure."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from export import lowering, precision, repository
from export.backends import Runtime
from export.precision import METHODS, Fold, Wanted
from export.samples import LabelsFrom
from models.errors import ExpectedError
from models.manifest import Manifest
from server import cpus

LEAST = 6
"""Images: two for each third."""


class Split(NamedTuple):
    """A third for each purpose, so that no image is used for two."""

    calibrate: Sequence[Path]
    tune: Sequence[Path]
    judge: Sequence[Path]


def split(paths: Sequence[Path]) -> Split:
    """Split images into three parts, every third image into the same one.

    Raises:
        ExpectedError: there are too few images.
    """
    if len(paths) < LEAST:
        too_few = f"{len(paths)} images are too few to calibrate INT8, find the rule and judge it"
        raise ExpectedError(f"{too_few}: give {LEAST} at the very least")
    return Split(paths[::3], paths[1::3], paths[2::3])


def name_of_int8(source: Manifest) -> str:
    """The name of the INT8 model, which is asked first."""
    return f"{source.name}-int8"


def int8_of(root: Path, source: Manifest, images: Split, labels_from: LabelsFrom) -> Manifest:
    """Return the newest INT8 model that was made from this one and suits this CPU, or make one.

    It is published however seldom it agrees with FP32 by itself: the cascade is what must agree.

    Raises:
        ExpectedError: an image cannot be read, or the file cannot be quantised.
    """
    name = name_of_int8(source)
    for known in repository.newest_first(root / name):
        made = known.conversion
        if made and made.source_sha256 == source.file.sha256 and not cpus.why_not(known, cpus.flags()):
            return known
    folds = [Fold(images.calibrate, images.tune)]
    wanted = Wanted("int8", _runtime(), precision.this_machine(), METHODS, folds, min_agreement=0)
    threads = cpus.available_cpus()
    return lowering.lower(root, source, name, wanted, threads=threads, labels_from=labels_from, seconds=0)


def _runtime() -> Runtime:
    """Choose OpenVINO, the quickest with INT8, if it is installed."""
    return "openvino" if find_spec("openvino") else "onnx"
