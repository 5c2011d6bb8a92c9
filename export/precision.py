"""The requested lower precision, and the gate for its file; decided before ONNX Runtime is imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, assert_never, get_args

from export import agreement, repository
from export.agreement import Judgement
from export.backends import Runtime
from export.recipe import TOOLS
from export.report import Report
from export.samples import PHOTOS, readable
from models.errors import ExpectedError
from models.manifest import Calibration, Conversion, Manifest, QuantizationTarget, Rounding
from models.weights import sha256_of
from server import cpus

LowerPrecision = Literal["int8", "fp16", "bf16"]
Method = Literal["moving-average", "minmax", "percentile", "entropy"]
"""How the range of an activation is found: from the mean of the batches' extremes, from all values, from all values
except the outermost 0.01 %, or as the range that loses the least information."""
METHODS: tuple[Method, ...] = get_args(Method)
PRECISIONS: tuple[LowerPrecision, ...] = get_args(LowerPrecision)
TARGETS: tuple[QuantizationTarget, ...] = get_args(QuantizationTarget)


_CODE: dict[LowerPrecision, tuple[str, ...]] = {
    "int8": ("agreement.py", "quantization.py", "bias_correction.py", "activations.py"),
    "fp16": ("agreement.py", "half.py"),
    "bf16": ("agreement.py",),
}
"""Modules that make a file and judge it."""


class PrecisionError(ExpectedError):
    """The requested file cannot be made, or disagrees with the FP32 model too often."""


class Fold(NamedTuple):
    """The images for one file: it is never compared on those that it was calibrated on."""

    calibrate: Sequence[Path]
    """Empty if none are needed."""
    evaluate: Sequence[Path]


class Lowered(NamedTuple):
    """Files of lower precision, not yet compared with the FP32 file they were made from."""

    draft: Manifest
    contents: Sequence[bytes]
    """One for each fold; the first is the one to publish."""
    calibration: Calibration | None
    """Of the first; None: none was needed."""


@dataclass(frozen=True)
class Wanted:
    """Everything except the FP32 file that determines a file of lower precision and whether it is published."""

    precision: LowerPrecision
    backend: Runtime
    target: QuantizationTarget
    """INT8 only."""
    methods: Sequence[Method]
    """INT8 only: the first is used, unless another is clearly better."""
    folds: Sequence[Fold]
    min_agreement: float
    """Least top-1 agreement with FP32, in percent."""
    accept_undecided: bool = False
    """Publish even if the images are too few to tell whether it agrees that often."""

    @property
    def roundings(self) -> Sequence[Rounding]:
        """INT8 only: the first is used, unless another is clearly better.

        OpenVINO's kernels take sums and outputs in floating point at little cost; in ONNX Runtime such a file would be
        slower than FP32 (docs/guides/precision.md).
        """
        if self.target == "gpu":
            return ("all",)
        return ("inputs",) if self.backend == "openvino" else ("all", "all-but-first")

    @property
    def evaluated(self) -> list[Path]:
        """All images to compare on, in the order of the folds."""
        return [path for fold in self.folds for path in fold.evaluate]

    def name(self, network: str) -> str:
        """Default name, not the FP32 model's: as a version of that, the file would silently replace it."""
        return f"{network}-{self.precision}" + ("-gpu" if (self.precision, self.target) == ("int8", "gpu") else "")

    def fingerprint(self, source: Manifest) -> str:
        """Digest everything, including the gate's threshold and images."""
        int8 = self.precision == "int8"
        ingredients = [
            [source.file.sha256, source.fingerprint],  # one file may go with several preprocessings and labels
            self.precision,
            self.backend,
            TOOLS,
            [sha256_of(Path(__file__).with_name(name)) for name in _CODE[self.precision]],
            [self.min_agreement, self.accept_undecided, *map(sha256_of, self.evaluated)],
            [self.target, *self.methods, *self.roundings] if int8 else [],
            [sha256_of(path) for fold in self.folds for path in fold.calibrate],
        ]
        return repository.digest(ingredients)

    def admit(self, lowered: Lowered, source: Manifest, report: Report) -> Manifest:
        """Add the measurements to the draft; the report's first line is the FP32 file, its second this one.

        Raises:
            PrecisionError: the two agree too seldom, or the images are too few to tell.
        """
        reference, line = report.lines
        judged = agreement.judge(line.agreeing, report.images, self.min_agreement / 100)
        match judged.verdict:
            case "refused":
                raise PrecisionError(f"{judged.text}: nothing was added to the repository")
            case "undecided" if not self.accept_undecided:
                raise PrecisionError(_undecided(judged))
            case "undecided" | "accepted" as verdict:
                pass
            case _:
                assert_never(judged.verdict)
        conversion = Conversion(
            source=source.name,
            source_version=source.version,
            source_sha256=source.file.sha256,
            calibration=lowered.calibration,
            images=report.images,
            top1_agreement=line.top1_agreement,
            agreement_interval=judged.interval,
            min_agreement=judged.wanted,
            verdict=verdict,
            sure_disagreements=line.sure_disagreements,
            max_logit_error=line.max_logit_error,
            accuracy=line.accuracy.get(1),
            source_accuracy=reference.accuracy.get(1),
        )
        return lowered.draft.model_copy(update={"conversion": conversion})


def choose_images(precision: LowerPrecision, calibration: Path | None, images: Path | None) -> list[Fold]:
    """Choose the images to calibrate and to evaluate on; halves of a single folder take turns.

    Raises:
        ExpectedError: there are too few images.
    """
    if precision != "int8":
        return [Fold((), readable(images or calibration or PHOTOS))]
    if calibration is None:
        raise PrecisionError("INT8 is calibrated on real images: give some with --calibration FOLDER")
    paths = readable(calibration)
    if images:
        return [Fold(paths, readable(images))]
    if len(paths) == 1:
        raise PrecisionError(f"{calibration} has one image: give two at least, to calibrate and to evaluate on")
    halves = paths[::2], paths[1::2]
    return [Fold(*halves), Fold(*reversed(halves))]


def choose_backend(precision: LowerPrecision, backend: Runtime | None) -> Runtime:
    """Choose the runtime that will serve a file: by default ONNX Runtime, for bfloat16 OpenVINO.

    Raises:
        PrecisionError: the runtime does not compute in this precision, or this CPU does not.
    """
    if precision != "bf16":
        return backend or "onnx"
    if backend == "onnx":
        raise PrecisionError("ONNX Runtime does not compute in bfloat16 on a CPU: leave out --backend onnx")
    if not cpus.flags() & cpus.BF16:
        raise PrecisionError(
            "this CPU does not compute in bfloat16 (avx512_bf16 or amx_bf16), so that its answers cannot be compared"
            " here: run this where it is to be served"
        )
    return "openvino"


def this_machine(cpuinfo: Path = cpus.CPUINFO) -> QuantizationTarget:
    """Return the target for this machine's CPU, by its flags."""
    return "x86-vnni" if cpus.flags(cpuinfo) & cpus.VNNI else "x86"


def _undecided(judged: Judgement) -> str:
    more = judged.more()
    decide = (
        f"about {more} more images would decide it, if they agree as often"
        if more
        else "no practical number of images would decide it"
    )
    return (
        f"{judged.text} and {100 * judged.proven:g} % must be proven, which is undecided: {decide};"
        " nothing was added to the repository (--accept-undecided adds it anyway)"
    )
