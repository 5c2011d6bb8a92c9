"""The manifest: the single record of everything known about one version of an exported model.

`export/` writes it beside the model file; `server/` takes preprocessing, labels and digests from it alone. This module
needs neither torch nor ONNX, so that a serving machine can import it.
"""

import hashlib
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self, assert_never

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from models.errors import first_mistake

FILE_NAME = "manifest.json"

INPUT_NAME = "images"
"""Graph input: uint8[N, H, W, 3], RGB."""
PROBABILITIES_NAME = "probabilities"
"""Graph output: float32[N, top_k], from the manifest's activation, largest first."""
INDICES_NAME = "indices"
"""Graph output: int32[N, top_k], class indices of the probabilities."""
LOGITS_NAME = "logits"
"""Graph output: float32[N, num_classes], for checks and averages; the network's logits, divided by the manifest's
temperature if it has one."""
OUTPUT_NAMES = [PROBABILITIES_NAME, INDICES_NAME, LOGITS_NAME]
"""The outputs of every graph, in the order in which this project requests them."""
FEATURES_NAME = "features"
"""Graph output: float32[N, C], the means over the last feature map, from which the last layer computes the logits."""
ACTIVATION_MAPS_NAME = "activation_maps"
"""Graph output: float32[N, K, h, w], class activation maps of the K best classes (arXiv:1512.04150): what each position
of the last feature map contributes to a class's logit. The logit is their mean plus the class's bias."""
EXTRA_NAMES = [FEATURES_NAME, ACTIVATION_MAPS_NAME]
"""Additional outputs of graphs whose network ends in global average pooling and one linear layer."""
MAPPED_CLASSES = 5
"""The graph has activation maps of min(MAPPED_CLASSES, num_classes) classes: as many as an answer has by default."""

MAX_TOP_K = 100
"""The graph ranks min(MAX_TOP_K, num_classes) classes."""

NAME = r"^[a-z0-9][a-z0-9_.@-]{0,99}$"
ModelName = Annotated[str, Field(pattern=NAME)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ComputeCapability = Annotated[str, Field(pattern=r"^sm[0-9]{2,3}$")]
"""An NVIDIA GPU's compute capability as compilers write it: sm89 is 8.9."""
Flavour = Literal["tensorrt", "tensorrt_rtx"]
"""TensorRT for every NVIDIA GPU, or TensorRT for RTX, which is made for GeForce RTX and RTX PRO."""
Compatibility = Literal["version", "ampere+", "same-compute-capability"]
"""What an engine also runs on: later versions of TensorRT, every GPU since Ampere (sm80), or every GPU of the same
compute capability."""
QuantizationTarget = Literal["x86-vnni", "x86", "gpu"]
"""The hardware an INT8 file is for: x86 with VNNI's 8-bit dot products, x86 without them, or a GPU."""
Rounding = Literal["all", "all-but-first", "inputs"]
"""What INT8 rounds: every activation of the network; every one except at the first convolution; or only the inputs of
convolutions and fully connected layers, except the first convolution."""
OnnxBackend = Literal["onnx", "openvino"]
"""Backends that run ONNX files."""
Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""Number format of a file. bf16 applies to the arithmetic alone: the file is the FP32 one."""


class ManifestError(ValueError):
    """A manifest or a file it names is missing, malformed or not what the digest says."""


class UnreadableError(ManifestError):
    """The file is missing or cannot be read; a retry may succeed."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(_Record):
    """A class's name."""

    label: str
    wordnet_id: str | None = None


Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest"]
"""Pillow's filters of these names."""
CropMode = Literal["centre", "squash", "pad"]
ChannelOrder = Literal["rgb", "bgr", "grey"]
"""Channels of the network's input; grey is one channel, Pillow's L."""
Activation = Literal["softmax", "sigmoid"]
"""softmax: each image has one class; sigmoid: each class has an independent probability."""
CropCount = Literal[1, 10]


class Crop(NamedTuple):
    """Position of one `Preprocessing.crop` window in the resized image; it may reach beyond the image's edges.

    A mirrored crop is flipped left to right.
    """

    left: int
    top: int
    mirrored: bool = False


def _square(crop: object) -> object:
    """Accept the single number, the side of a square, of older manifests."""
    return (crop, crop) if isinstance(crop, int) else crop


_Side = Annotated[int, Field(ge=1, le=4096)]


class Preprocessing(_Record):
    """How an RGB image becomes the network's input.

    The server resizes and crops the image by `crop_mode`; the graph then selects the `channels` and computes
    (pixel / 255 - mean) / std.

    centre: resize the short side to `resize` (long side truncated to an integer, as torchvision does), crop the centre.

    squash: resize to the `frame`, ignoring the aspect ratio, crop the centre.

    pad: resize to fit into the `frame`, then crop the centre, or pad with the mean colour where the image is smaller,
    as timm does.
    """

    resize: _Side
    """centre: the short side after resizing. squash and pad: the larger side of `frame`; if it equals that of `crop`,
    nothing is cut off."""
    crop: Annotated[tuple[_Side, _Side], BeforeValidator(_square)]
    """Height and width; one number is the side of a square."""
    crop_mode: CropMode = "centre"
    interpolation: Interpolation
    channels: ChannelOrder = "rgb"
    mean: tuple[float, ...]
    """For pixels in 0..1, one value per channel, in the network's channel order."""
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop_mode != "pad" and max(self.crop) > self.resize:
            raise ValueError(f"crop {self.crop_text} is larger than resize {self.resize}")
        count = 1 if self.channels == "grey" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != count:
                raise ValueError(f"{name} has {len(values)} values, but {self.channels} has {count}: give one for each")
        if not all(value > 0 for value in self.std):
            raise ValueError("std must be greater than 0")
        return self

    def reads_as(self, other: "Preprocessing") -> bool:
        """Whether both turn images into the same pixels; what the graph then does with them may differ."""
        what = {"resize", "crop", "crop_mode", "interpolation"}
        filled = self.crop_mode != "pad" or self.fill == other.fill
        return filled and all(getattr(self, name) == getattr(other, name) for name in what)

    @property
    def crop_text(self) -> str:
        """The crop as text, height first: 224x192."""
        height, width = self.crop
        return f"{height}x{width}"

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width: the crop, enlarged so that its larger side is `resize`."""
        height, width = (round(side * self.resize / max(self.crop)) for side in self.crop)
        return height, width

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """The width and height to which an image of `size` (width, height) is resized, each 1 or more."""
        width, height = size
        frame_height, frame_width = self.frame
        match self.crop_mode:
            case "centre":
                return int(self.resize * width / min(size)), int(self.resize * height / min(size))
            case "squash":
                return frame_width, frame_height
            case "pad":
                shrinking = max(width / frame_width, height / frame_height)
                return max(1, round(width / shrinking)), max(1, round(height / shrinking))
            case _:
                assert_never(self.crop_mode)

    def crops(self, size: tuple[int, int], count: CropCount = 1) -> tuple[Crop, ...]:
        """Positions of the crops in an image that was resized to `size` (width, height), the centre first.

        Ten crops are the papers' test: centre, four corners, and their mirror images (section 3.4 of arXiv:1512.03385,
        AlexNet before it); the answer is the mean of their probabilities. Along a side on which the image is not larger
        than the crop, all crops are centred.
        """
        height, width = self.crop
        right, bottom = size[0] - width, size[1] - height
        centre = Crop(left=_middle(right), top=_middle(bottom))
        if count == 1:
            return (centre,)
        lefts = (0, right) if right > 0 else (centre.left,) * 2
        tops = (0, bottom) if bottom > 0 else (centre.top,) * 2
        upright = (centre, *(Crop(left=left, top=top) for top in tops for left in lefts))
        return upright + tuple(crop._replace(mirrored=True) for crop in upright)

    def shown(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The part of an upright image of `size` (width, height) that the centre crop shows.

        Returns:
            Left, top, right and bottom as shares of width and height; below 0 or above 1 where the crop is padded.
        """
        width, height = self.resized(size)
        ((left, top, _),) = self.crops((width, height))
        return left / width, top / height, (left + self.crop[1]) / width, (top + self.crop[0]) / height

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour as an RGB pixel, which normalisation turns into nearly zero."""
        levels = tuple(min(255, max(0, round(255 * value))) for value in self.mean)
        match self.channels:
            case "rgb":
                red, green, blue = levels
            case "bgr":
                blue, green, red = levels
            case "grey":
                red = green = blue = levels[0]
            case _:
                assert_never(self.channels)
        return red, green, blue


def _middle(spare: int) -> int:
    """Offset of a centred crop, rounded as torchvision does for cropping, as timm does for padding (negative)."""
    return round(spare / 2) if spare >= 0 else -(-spare // 2)


class Weights(_Record):
    """Origin of the parameters. `random` weights are untrained: the model's answers mean nothing."""

    source: str
    sha256: Sha256 | None
    random: bool = False


class Accuracy(_Record):
    """ImageNet or CIFAR accuracy, in percent."""

    top1: float
    top5: float | None = None


class Parity(_Record):
    """How close the graph is to PyTorch in FP32, or to the ONNX file it was made from, over all compared images."""

    batch_sizes: tuple[int, ...]
    images: int
    real_images: int
    max_logit_error: float
    max_logit_error_allowed: float
    top1_agreement: float


class Expectation(_Record):
    """How close an export is to the logits of the user's own model, with images read as the server reads them."""

    source: str
    """Name of the file or folder with the expected logits."""
    images: int
    top1_agreement: float
    logit_error: float
    """Root mean square of the differences, relative to the root mean square of the expected logits."""
    logit_error_allowed: float


class Calibration(_Record):
    """How the ranges of INT8 activations were found."""

    target: QuantizationTarget
    method: str
    images: int
    rounding: Rounding = "all"
    backend: OnnxBackend | None = None
    """The only backend that runs it as intended; None: every one that runs ONNX files."""


class Conversion(_Record):
    """The FP32 file a lower-precision file was made from, and how their answers differ on held-out images."""

    source: ModelName
    source_version: int
    source_sha256: Sha256
    calibration: Calibration | None
    """None: the precision needed no calibration."""
    images: int
    top1_agreement: float
    """Share of the images with the same best class as in FP32."""
    agreement_interval: tuple[float, float] | None = None
    """95 % confidence interval of that share over all images like these; None in older manifests."""
    min_agreement: float | None = None
    """Share that was required; None in older manifests."""
    verdict: Literal["accepted", "undecided"] = "accepted"
    """Undecided: published on request, although these images do not show whether it agrees often enough."""
    sure_disagreements: int | None = None
    """Images with another best class although FP32 was sure of its own; None in older manifests."""
    max_logit_error: float
    """Largest |logit - FP32's|."""
    accuracy: Accuracy | None
    """Measured; None if the images' classes were unknown."""
    source_accuracy: Accuracy | None


class Miscalibration(_Record):
    """How far predicted probabilities are from observed frequencies, on images that nothing was fitted on."""

    ece: float
    """Expected calibration error, 0 to 1 (arXiv:1706.04599, equation 3, 15 bins)."""
    nll: float
    """Mean negative logarithm of the true class's probability, in nats."""


class HeldOut(_Record):
    """Calibration without and with the temperature, on images that nothing was fitted on."""

    images: Annotated[int, Field(ge=1)]
    before: Miscalibration
    """Without a temperature."""
    after: Miscalibration


UnknownScore = Literal["max_logit", "energy"]
"""A score that is high for images of the model's classes: the largest logit (arXiv:1911.11132), or the negative free
energy, which is the logarithm of the sum of the logits' exponentials (arXiv:2010.03759)."""


class Unknown(_Record):
    """The score from which an image counts as one of the model's classes ("known")."""

    score: UnknownScore
    """Computed from the graph's logits, which are divided by the temperature."""
    threshold: float
    keep_known: Annotated[float, Field(gt=0, lt=1)]
    """Share of known images that the threshold was chosen to accept."""
    images: int
    """Known images that the threshold was chosen on."""
    known: float
    """Share of held-out known images that it accepts."""
    unknown_images: int = 0
    """Images of none of the classes; 0: there were none to choose the score by."""
    unknown_rejected: float | None = None
    """Share that it rejects of their held-out half."""
    auroc: dict[UnknownScore, float] = {}
    """How well each score separates known from unknown held-out images: 1 is perfect, 0.5 is chance."""


SetMethod = Literal["lac", "aps", "raps"]
"""Nonconformity score of a class: 1 - its probability (LAC, arXiv:1609.00451), the total probability of all more
probable classes (APS, arXiv:2006.02544), or that plus a penalty for each class beyond the first few (RAPS,
arXiv:2009.14193)."""


class SetFigures(_Record):
    """Prediction sets as measured on held-out images."""

    coverage: float
    """The coverage requested."""
    covered: float
    """Share of the images whose true class was in their set."""
    mean_size: float
    """Mean number of classes in a set."""


class PredictionSets(_Record):
    """Parameters of split conformal prediction: sets of classes that hold the true one with a chosen probability.

    `models.confidence` makes the sets.
    """

    method: SetMethod
    penalty: Annotated[float, Field(ge=0)] = 0.0
    """RAPS's penalty for each class."""
    penalty_from: Annotated[int, Field(ge=0)] = 0
    """Number of classes that RAPS adds without a penalty."""
    images: Annotated[int, Field(ge=1)]
    """Images the scores come from; the temperature was fitted on others."""
    scores: Annotated[tuple[float, ...], Field(min_length=1, max_length=999)]
    """n scores of true classes, ascending: a true class's score is at most element i with a probability of at least
    (i + 1) / (n + 1)."""
    held_out: tuple[SetFigures, ...] = ()

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(after < before for before, after in pairwise(self.scores)):
            raise ValueError("the scores of prediction sets do not rise")
        return self


class Confidence(_Record):
    """The calibration of a model's probabilities, and how well it works, measured with one crop of each image."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The graph divides the network's logits by it before softmax; its `logits` output is the quotients."""
    images: int = 0
    """Images it was fitted on; 0: the user gave it."""
    held_out: HeldOut | None = None
    """None, like the fields below: this file was made from a calibrated one and not calibrated itself."""
    unknown: Unknown | None = None
    sets: PredictionSets | None = None


class ModelFile(_Record):
    """One file of the version's folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    sha256: Sha256
    size_bytes: int


class Profile(_Record):
    """Batch sizes an optimisation profile accepts: `smallest` to `largest`; it is tuned for `largest`."""

    smallest: Annotated[int, Field(ge=1)]
    largest: Annotated[int, Field(ge=1)]


class TensorRT(_Record):
    """How a TensorRT engine was built and where it runs; other machines cannot read this from the plan."""

    flavour: Flavour
    version: str
    """TensorRT version, all four numbers: no other version loads the engine unless `compatibility` has "version"."""
    compute_capabilities: Annotated[tuple[ComputeCapability, ...], Field(min_length=1)]
    """The GPUs it was built for."""
    gpu: str | None
    """The GPU it was built on; None: ahead of time, on a machine without one."""
    compatibility: tuple[Compatibility, ...] = ()
    """Compatibility requested beyond the version and the GPU of the build."""
    refittable: bool = False
    """Its weights can be replaced without a rebuild."""
    profiles: Annotated[tuple[Profile, ...], Field(min_length=1)]
    """Largest batch last."""
    onnx_sha256: Sha256
    """Digest of the ONNX file it was built from."""


class Manifest(_Record):
    """One version of one model."""

    schema_version: Literal[1] = 1
    name: ModelName
    version: Annotated[int, Field(ge=1)]
    created: datetime
    architecture: str
    parameters: int
    weights: Weights
    published_accuracy: Accuracy | None
    preprocessing: Preprocessing
    activation: Activation = "softmax"
    """Turns logits into probabilities."""
    num_classes: Annotated[int, Field(ge=1)]
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)]
    backend: Literal["onnx", "openvino", "tensorrt", "torch"]
    precision: Precision
    opset: int | None
    """ONNX opset; None for a PyTorch program."""
    file: ModelFile
    parity: Parity | None
    expectation: Expectation | None = None
    """None: the user gave no expected logits."""
    tools: dict[str, str]
    fingerprint: Sha256
    """Digest of everything that determines the export; two exports with the same fingerprint are the same model."""
    labels: tuple[Label, ...]
    tensorrt: TensorRT | None = None
    """Set for a TensorRT engine; None for every other backend."""
    conversion: Conversion | None = None
    """Set for an ONNX file in lower precision; None for one exported from PyTorch."""
    needs_vnni: bool = False
    """True if the file was imported already quantised and its sums overflow on an x86 CPU without VNNI."""
    confidence: Confidence | None = None
    """None: the network's own probabilities, uncalibrated."""
    features: Annotated[int, Field(ge=1)] | None = None
    """Length of each image's features; None where the graph has none."""
    activation_maps: tuple[_Side, _Side] | None = None
    """Height and width of each activation map; None where the graph has none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.backend == "tensorrt") != (self.tensorrt is not None):
            raise ValueError(f"backend {self.backend} {'with' if self.tensorrt else 'without'} a record of TensorRT")
        if len(self.labels) != self.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.num_classes} classes")
        if (self.features is None) != (self.activation_maps is None):
            raise ValueError("features and activation_maps are of the same layer: a graph has both or neither")
        if self.top_k > self.num_classes:
            raise ValueError(f"top_k {self.top_k} is more than the {self.num_classes} classes")
        if self.confidence and self.activation != "softmax":
            raise ValueError(f"confidence is calibrated for one class per image (softmax), not for {self.activation}")
        if self.num_classes == 1 and self.activation == "softmax":
            raise ValueError("softmax of one class is always 1: export the network with --activation sigmoid")
        if self.bound_to not in (None, self.backend):
            raise ValueError(f"backend {self.backend}, but only {self.bound_to} runs it as it was meant")
        return self

    @property
    def quantized_for(self) -> QuantizationTarget | None:
        """The hardware it was quantised for; None if it is not quantised."""
        calibration = self.conversion and self.conversion.calibration
        return calibration.target if calibration else None

    @property
    def bound_to(self) -> OnnxBackend | None:
        """The only backend that may run it; None: the one it names, or for an ONNX file any that runs those."""
        if self.precision == "bf16":
            return "openvino"
        calibration = self.conversion and self.conversion.calibration
        return calibration.backend if calibration else None

    @property
    def mapped_classes(self) -> int:
        """How many classes of each image have an activation map."""
        return min(MAPPED_CLASSES, self.top_k) if self.activation_maps else 0

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image in the batch: (H, W, 3), uint8."""
        return *self.preprocessing.crop, 3


class Member(_Record):
    """A model version that an ensemble runs."""

    name: ModelName
    version: int
    sha256: Sha256
    """Digest of the file that was measured."""
    accuracy: Accuracy | None
    """Measured alone, on the ensemble's images; None if their classes were unknown."""


class _Combined(_Record):
    """Several models served as one; the combination has no model file of its own."""

    schema_version: Literal[1] = 1
    name: ModelName
    version: Annotated[int, Field(ge=1)]
    created: datetime
    labels: tuple[Label, ...]
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)]
    images: int
    """Number of images behind the figures here."""
    accuracy: Accuracy | None
    fingerprint: Sha256


class Ensemble(_Combined):
    """The mean of its members' probabilities on the same image (section 4.1 of 1512.03385)."""

    backend: Literal["ensemble"] = "ensemble"
    members: Annotated[tuple[Member, ...], Field(min_length=2, max_length=16)]
    agreement: float
    """Share of the images on which all members have the same best class."""


RuleKind = Literal["margin", "probability", "entropy"]
"""Measure of certainty: difference of the two largest probabilities, the largest probability, or the entropy."""


class Rule(_Record):
    """When a cascade returns a member's answer instead of running the next member."""

    kind: RuleKind
    threshold: float
    """Smallest `confidence.certainty` that is sure enough; negative for entropy."""


class Share(_Record):
    """A share of the images, 0 to 1, and its 95 % interval over images like them (Clopper and Pearson)."""

    share: float
    low: float
    high: float


class Stage(Member):
    """A model or an ensemble that a cascade runs, and the rule for returning its answer.

    `sha256` is the digest of its file; an ensemble has no file, so there it is the fingerprint.
    """

    rule: Rule | None
    """None for the last member, whose answer is always returned."""
    answered: float
    """Share of the images for which the cascade returned this member's answer."""
    top1_agreement: Share
    """How often its own best class is the reference's."""
    seconds: float | None
    """Per image, run alone on the machine that made the cascade; None: not measured."""


class Cascade(_Combined):
    """Members that run in turn, each only if the one before it was not sure."""

    backend: Literal["cascade"] = "cascade"
    members: Annotated[tuple[Stage, ...], Field(min_length=2, max_length=8)]
    """In the order in which they run."""
    reference: ModelName
    """The model whose best class the cascade must reproduce, usually its last member."""
    reference_version: int
    tuned_on: int
    """Number of images the rules were chosen on; all figures here come from others."""
    top1_agreement: Share
    """Agreement with the reference."""
    min_agreement: float
    """Share that was required."""
    reference_accuracy: Accuracy | None
    seconds: float | None
    """Mean per image, counting each member only for the images that reach it; None: not measured."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        *others, last = self.members
        if last.rule is not None or not all(member.rule for member in others):
            raise ValueError("each member of a cascade except the last must have a rule")
        if len({member.name for member in self.members}) < len(self.members):
            raise ValueError("no member of a cascade may be named twice")
        return self


EXACT = "-exact"
"""Suffix that a model's cascade from INT8 to FP32 adds to the model's name."""
Recipe = Ensemble | Cascade
"""Served without a model file of its own."""
Entry = Manifest | Ensemble | Cascade
_entry: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="backend")])


def read_entry(folder: Path) -> Entry:
    """Read the manifest of a model, an ensemble or a cascade from a version's folder.

    Raises:
        UnreadableError: it is missing, or cannot be read.
        ManifestError: it is not a valid manifest, or its name and version are not those of its folders.
    """
    path = folder / FILE_NAME
    try:
        found = _entry.validate_json(_read_file(path))
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise ManifestError(f"{path}: {first_mistake(error)}") from error
    if (folder.parent.name, folder.name) != (found.name, str(found.version)):
        raise ManifestError(f"{path}: it describes {found.name} version {found.version}, not this folder")
    return found


def read(folder: Path) -> Manifest:
    """Read the manifest of a model's version.

    Raises:
        ManifestError: as `read_entry`, or it is the manifest of an ensemble or a cascade.
    """
    found = read_entry(folder)
    if not isinstance(found, Manifest):
        raise ManifestError(f"{folder / FILE_NAME}: {found.name} is {called(found)}; name one of its members")
    return found


def called(recipe: Recipe) -> str:
    """Name its kind for messages."""
    return "an ensemble" if isinstance(recipe, Ensemble) else "a cascade"


def members_of(recipe: Recipe) -> str:
    """Name its members for messages: `one, two`."""
    return ", ".join(one.name for one in recipe.members)


def _read_file(path: Path) -> bytes:
    """Read a regular file only: reading a pipe of that name would block for ever."""
    if path.exists() and not path.is_file():
        raise UnreadableError(f"{path} is no file")
    return path.read_bytes()


def read_model_file(folder: Path, manifest: Manifest) -> bytes:
    """Return the model file's bytes, checked against the manifest's digest.

    Raises:
        UnreadableError: the file cannot be read.
        ManifestError: its digest differs.
    """
    path = folder / manifest.file.name
    try:
        content = _read_file(path)
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != manifest.file.sha256:
        raise ManifestError(f"{path}: its SHA-256 is not the manifest's; export the model again")
    return content
