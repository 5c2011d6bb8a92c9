"""What lower precision is asked for, and what it must be worth: decided before ONNX Runtime is even imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from export import repository
from export.backends import Runtime
from export.recipe import TOOLS
from export.report import Report
from export.samples import PHOTOS, image_paths
from models.errors import ExpectedError
from models.manifest import Calibration, Conversion, Manifest, QuantizationTarget
from models.weights import sha256_of
from server import cpus

Method = Literal["percentile", "moving-average", "minmax", "entropy"]
"""How the range of an activation is found: without the outermost 0.01 % of its values, the mean of the batches'
extremes, all values, or the range that loses least information."""
METHODS: tuple[Method, ...] = get_args(Method)
TARGETS: tuple[QuantizationTarget, ...] = get_args(QuantizationTarget)


class PrecisionError(ExpectedError):
    """What was asked for cannot be made, or answers otherwise than the FP32 model too often."""


class Images(NamedTuple):
    """Halves of one folder, or one folder for each."""

    calibrate: Sequence[Path]
    """Empty for FP16."""
    evaluate: Sequence[Path]


class Lowered(NamedTuple):
    """A file of lower precision that is to be compared with the FP32 file it was made from."""

    draft: Manifest
    content: bytes
    calibration: Calibration | None
    """None: none was needed."""


@dataclass(frozen=True)
class Wanted:
    """All that determines a file of lower precision, and whether it is published, beside its FP32 file."""

    precision: Literal["int8", "fp16"]
    backend: Runtime
    target: QuantizationTarget
    """Without a meaning for FP16."""
    methods: Sequence[Method]
    """The best of them is taken; without a meaning for FP16."""
    images: Images
    min_agreement: float
    """Least top-1 agreement with FP32, in percent."""

    def name(self, network: str) -> str:
        """Call the model what it is: as a version of the FP32 model it would silently replace that."""
        return f"{network}-{self.precision}" + ("-gpu" if (self.precision, self.target) == ("int8", "gpu") else "")

    def fingerprint(self, source: Manifest) -> str:
        """Digest all of it: a gate that lets less pass, or looks at other images, is another one."""
        int8 = self.precision == "int8"
        converters = ("quantization.py", "bias_correction.py") if int8 else ("half.py",)
        ingredients = [
            [source.file.sha256, source.fingerprint],  # one file may go with several preprocessings and labels
            self.precision,
            self.backend,
            TOOLS,
            [sha256_of(Path(__file__).with_name(name)) for name in converters],
            [self.min_agreement, *map(sha256_of, self.images.evaluate)],
            [self.target, *self.methods, *map(sha256_of, self.images.calibrate)] if int8 else [],
        ]
        return repository.digest(ingredients)

    def admit(self, lowered: Lowered, source: Manifest, report: Report) -> Manifest:
        """Add to the draft what was measured, the FP32 file in the report's first line.

        Raises:
            PrecisionError: the two agree too seldom.
        """
        reference, line = report.lines
        if line.top1_agreement < self.min_agreement / 100:
            raise PrecisionError(
                f"top-1 agreement with FP32 is {line.top1_agreement:.1%} on {report.images} images,"
                f" {self.min_agreement:g} % is wanted: nothing was added to the repository"
            )
        conversion = Conversion(
            source=source.name,
            source_version=source.version,
            source_sha256=source.file.sha256,
            calibration=lowered.calibration,
            images=report.images,
            top1_agreement=line.top1_agreement,
            max_logit_error=line.max_logit_error,
            accuracy=line.accuracy.get(1),
            source_accuracy=reference.accuracy.get(1),
        )
        return lowered.draft.model_copy(update={"conversion": conversion})


def choose_images(precision: str, calibration: Path | None, images: Path | None) -> Images:
    """Decide which images to calibrate and which to evaluate on: without a folder for each, every second one.

    Raises:
        ExpectedError: there are too few.
    """
    if precision == "fp16":
        return Images((), image_paths(images or calibration or PHOTOS))
    if calibration is None:
        raise PrecisionError("INT8 is calibrated on real images: give some with --calibration FOLDER")
    paths = image_paths(calibration)
    if images:
        return Images(paths, image_paths(images))
    if len(paths) == 1:
        raise PrecisionError(f"{calibration} has one image: give two at least, to calibrate and to evaluate on")
    return Images(paths[::2], paths[1::2])


def this_machine(cpuinfo: Path = cpus.CPUINFO) -> QuantizationTarget:
    """Tell the target of this machine's CPU by its flags."""
    return "x86-vnni" if cpus.flags(cpuinfo) & cpus.VNNI else "x86"
