"""The manifest: all that is known about one version of an exported model, and the only place it is written down.

`export/` writes it beside the model file, `server/` reads it and takes preprocessing, labels and digests from nowhere
else. This module needs neither torch nor ONNX, so that a serving machine can import it.
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
"""Graph output: float32[N, top_k], by the manifest's activation, largest first."""
INDICES_NAME = "indices"
"""Graph output: int32[N, top_k], class indices of the probabilities."""
LOGITS_NAME = "logits"
"""Graph output: float32[N, num_classes], for checks and averages; the network's, divided by the temperature if the
manifest has one."""
OUTPUT_NAMES = [PROBABILITIES_NAME, INDICES_NAME, LOGITS_NAME]
"""The outputs of every graph, in the order in which everything here asks for them."""
FEATURES_NAME = "features"
"""Graph output: float32[N, C], the means over the last feature map, of which the last layer makes the logits."""
ACTIVATION_MAPS_NAME = "activation_maps"
"""Graph output: float32[N, K, h, w], class activation maps of the K best classes (arXiv:1512.04150): what each place of
the last feature map adds to a class's logit, which is their mean and the class's bias."""
EXTRA_NAMES = [FEATURES_NAME, ACTIVATION_MAPS_NAME]
"""What a graph has besides where its network ends in global average pooling and one linear layer."""
MAPPED_CLASSES = 5
"""The graph has activation maps of min(MAPPED_CLASSES, num_classes) classes: as many as are answered by default."""

MAX_TOP_K = 100
"""The graph ranks min(MAX_TOP_K, num_classes) classes."""

ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.@-]{0,99}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ComputeCapability = Annotated[str, Field(pattern=r"^sm[0-9]{2,3}$")]
"""Of an NVIDIA GPU, as compilers name it: sm89 is 8.9."""
Flavour = Literal["tensorrt", "tensorrt_rtx"]
"""TensorRT for every NVIDIA GPU, or TensorRT for RTX, which is made for GeForce RTX and RTX PRO."""
Compatibility = Literal["version", "ampere+", "same-compute-capability"]
"""An engine for later versions of TensorRT too, for every GPU since Ampere (sm80), for every GPU of its capability."""
QuantizationTarget = Literal["x86-vnni", "x86", "gpu"]
"""What runs an INT8 file: x86 with VNNI's 8-bit dot products, x86 without them, or a GPU."""
Rounding = Literal["all", "all-but-first", "inputs"]
"""What INT8 rounds: every activation of the network; not the first convolution; or only what enters a convolution or a
fully connected layer, the first convolution apart."""
OnnxBackend = Literal["onnx", "openvino"]
"""What runs ONNX files."""
Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""Of a file's numbers; of bf16 that of the arithmetic alone: the file is the FP32 one."""


class ManifestError(ValueError):
    """A manifest or a file it names is missing, malformed or not what the digest says."""


class UnreadableError(ManifestError):
    """It is missing or cannot be read; another time it may be."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(_Record):
    """What a class is called."""

    label: str
    wordnet_id: str | None = None


Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest"]
"""Pillow's filters of these names."""
CropMode = Literal["centre", "squash", "pad"]
ChannelOrder = Literal["rgb", "bgr", "grey"]
"""What the network sees; grey is one channel, Pillow's L."""
Activation = Literal["softmax", "sigmoid"]
"""One class for each image, or a probability for each class by itself."""
CropCount = Literal[1, 10]


class Crop(NamedTuple):
    """One window of `Preprocessing.crop` in the resized image, or beyond it; mirrored ones swap left and right."""

    left: int
    top: int
    mirrored: bool = False


def _square(crop: object) -> object:
    """Older manifests have one number, the side of a square."""
    return (crop, crop) if isinstance(crop, int) else crop


_Side = Annotated[int, Field(ge=1, le=4096)]


class Preprocessing(_Record):
    """From an RGB image to the network's input.

    The image is resized and cropped by `crop_mode`; the graph then takes the `channels`, and computes
    (pixel / 255 - mean) / std.

    centre: resize the short side to `resize` (long side truncated to an integer, as torchvision does), crop the centre.

    squash: resize to the `frame` whatever that does to the proportions, crop the centre.

    pad: resize to fit into the `frame`, crop the centre or fill what is missing around it with the mean colour, as timm
    does.
    """

    resize: _Side
    """Short side for centre; for the others, the frame's larger side: that of `crop` if nothing is cut off."""
    crop: Annotated[tuple[_Side, _Side], BeforeValidator(_square)]
    """Height and width; one number is the side of a square."""
    crop_mode: CropMode = "centre"
    interpolation: Interpolation
    channels: ChannelOrder = "rgb"
    mean: tuple[float, ...]
    """Of pixels in 0..1, one for each channel in the order in which the network sees them."""
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
        """Whether images become the same pixels by both; what the graph does with them may differ."""
        what = {"resize", "crop", "crop_mode", "interpolation"}
        filled = self.crop_mode != "pad" or self.fill == other.fill
        return filled and all(getattr(self, name) == getattr(other, name) for name in what)

    @property
    def crop_text(self) -> str:
        """The crop as people write it: 224x192, height first."""
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
        """Where the crops lie in an image that was resized to `size` (width, height), the centre first.

        Ten are the papers' test: centre, four corners, and their mirrors (section 3.4 of arXiv:1512.03385 and before it
        AlexNet's); the mean of their probabilities is the answer. What is smaller than the crop has neither left nor
        right, and lies in the middle of all.
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
            Left, top, right and bottom as shares of width and height; below 0 or above 1 where it is filled up.
        """
        width, height = self.resized(size)
        ((left, top, _),) = self.crops((width, height))
        return left / width, top / height, (left + self.crop[1]) / width, (top + self.crop[0]) / height

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour as an RGB pixel, which is nearly zero once it is normalised."""
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
    """Of what is cropped, as torchvision rounds it; of what is filled up (negative), as timm does."""
    return round(spare / 2) if spare >= 0 else -(-spare // 2)


class Weights(_Record):
    """Where the parameters came from. `random` weights are untrained: answers mean nothing."""

    source: str
    sha256: Sha256 | None
    random: bool = False


class Accuracy(_Record):
    """ImageNet or CIFAR accuracy, in percent."""

    top1: float
    top5: float | None = None


class Parity(_Record):
    """How close the graph is to PyTorch in FP32, or to the ONNX file it was made of, over all that was compared."""

    batch_sizes: tuple[int, ...]
    images: int
    real_images: int
    max_logit_error: float
    max_logit_error_allowed: float
    top1_agreement: float


class Expectation(_Record):
    """How close an export is to the logits that somebody's own model gives, with images read as the server does."""

    source: str
    """Name of the file or folder with those logits."""
    images: int
    top1_agreement: float
    logit_error: float
    """Root mean square of the differences, as a share of that of the expected logits."""
    logit_error_allowed: float


class Calibration(_Record):
    """How the ranges of INT8 activations were found."""

    target: QuantizationTarget
    method: str
    images: int
    rounding: Rounding = "all"
    backend: OnnxBackend | None = None
    """The only one that runs it as it was meant; None: each that runs ONNX files."""


class Conversion(_Record):
    """From which FP32 file one of lower precision was made, and what that changed, on images it was not made with."""

    source: ModelName
    source_version: int
    source_sha256: Sha256
    calibration: Calibration | None
    """None: none was needed."""
    images: int
    top1_agreement: float
    """Share of the images with the same best class as in FP32."""
    agreement_interval: tuple[float, float] | None = None
    """In which that share lies for all images like these, with 95 % confidence; None in older manifests."""
    min_agreement: float | None = None
    """Share that was asked for; None in older manifests."""
    verdict: Literal["accepted", "undecided"] = "accepted"
    """Undecided: published on request, though these images do not tell whether it agrees often enough."""
    sure_disagreements: int | None = None
    """Images with another best class although FP32 was sure of its own; None in older manifests."""
    max_logit_error: float
    """Largest |logit - FP32's|."""
    accuracy: Accuracy | None
    """Measured; None where the images' classes were not known."""
    source_accuracy: Accuracy | None


class Miscalibration(_Record):
    """How far probabilities are from what they say, on images that nothing was fitted on."""

    ece: float
    """Expected calibration error, 0 to 1 (arXiv:1706.04599, equation 3, 15 bins)."""
    nll: float
    """Mean negative logarithm of the true class's probability, in nats."""


class HeldOut(_Record):
    """What the temperature does on images that nothing was fitted on."""

    images: Annotated[int, Field(ge=1)]
    before: Miscalibration
    """Of the network as it is, without a temperature."""
    after: Miscalibration


UnknownScore = Literal["max_logit", "energy"]
"""What is high where an image is of one of the classes: the largest logit (arXiv:1911.11132), or the negative free
energy, which is the logarithm of the sum of the logits' exponentials (arXiv:2010.03759)."""


class Unknown(_Record):
    """From which score on an image is taken for one of the classes."""

    score: UnknownScore
    """Of the graph's logits, which the temperature has divided."""
    threshold: float
    keep_known: Annotated[float, Field(gt=0, lt=1)]
    """Share of images of the classes that the threshold was chosen to let pass."""
    images: int
    """Of the classes, that it was chosen by."""
    known: float
    """Share of held-out images of the classes that it lets pass."""
    unknown_images: int = 0
    """Of none of the classes; 0: there were none to choose the score by."""
    unknown_rejected: float | None = None
    """Share of the held-out half of those that it rejects."""
    auroc: dict[UnknownScore, float] = {}
    """How well each score tells the two apart, on held-out images: 1 is always, 0.5 is chance."""


SetMethod = Literal["lac", "aps", "raps"]
"""How little a class fits an image: 1 - its probability (LAC, arXiv:1609.00451), the probability of all that are more
probable (APS, arXiv:2006.02544), or that and a penalty for each class beyond the first few (RAPS, arXiv:2009.14193)."""


class SetFigures(_Record):
    """What prediction sets were worth on held-out images."""

    coverage: float
    """That was asked for."""
    covered: float
    """Share of the images whose true class was in their set."""
    mean_size: float
    """Classes in a set."""


class PredictionSets(_Record):
    """Split conformal prediction: what makes a set of classes that holds the true one with a chosen probability.

    `models.confidence` makes the sets.
    """

    method: SetMethod
    penalty: Annotated[float, Field(ge=0)] = 0.0
    """Of RAPS, for each class."""
    penalty_from: Annotated[int, Field(ge=0)] = 0
    """Classes that RAPS adds without a penalty."""
    images: Annotated[int, Field(ge=1)]
    """That the scores are from; the temperature was fitted on others."""
    scores: Annotated[tuple[float, ...], Field(min_length=1, max_length=999)]
    """Of the true classes, rising: element i is not exceeded with a probability of (i + 1) / (n + 1) at least, of n."""
    held_out: tuple[SetFigures, ...] = ()

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(after < before for before, after in pairwise(self.scores)):
            raise ValueError("the scores of prediction sets do not rise")
        return self


class Confidence(_Record):
    """What makes probabilities mean something, and what was measured of it, with one crop of each image."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The graph divides the network's logits by it before softmax; its `logits` are the quotients."""
    images: int = 0
    """That it was fitted on; 0: it was given."""
    held_out: HeldOut | None = None
    """None, as all that follows: this file was made of one that was calibrated, and is not calibrated itself."""
    unknown: Unknown | None = None
    sets: PredictionSets | None = None


class ModelFile(_Record):
    """One file of the version's folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    sha256: Sha256
    size_bytes: int


class Profile(_Record):
    """Batch sizes that an optimisation profile admits: from `smallest` to `largest`, which it is tuned for."""

    smallest: Annotated[int, Field(ge=1)]
    largest: Annotated[int, Field(ge=1)]


class TensorRT(_Record):
    """What a TensorRT engine was built by, and what it runs on: the plan cannot be asked on another machine."""

    flavour: Flavour
    version: str
    """Of TensorRT, all four numbers: no other version loads the engine, unless it is compatible by `version`."""
    compute_capabilities: Annotated[tuple[ComputeCapability, ...], Field(min_length=1)]
    """Of the GPUs it was built for."""
    gpu: str | None
    """The GPU it was built on; None: ahead of time, on a machine without one."""
    compatibility: tuple[Compatibility, ...] = ()
    """What was asked for beyond the version and the GPU of the build."""
    refittable: bool = False
    """Its weights can be exchanged without another build."""
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
    """What makes probabilities of the logits."""
    num_classes: Annotated[int, Field(ge=1)]
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)]
    backend: Literal["onnx", "openvino", "tensorrt", "torch"]
    precision: Precision
    opset: int | None
    """Of ONNX; None for a program of PyTorch, which has none."""
    file: ModelFile
    parity: Parity | None
    expectation: Expectation | None = None
    """None: nobody stated what to expect."""
    tools: dict[str, str]
    fingerprint: Sha256
    """Digest of all that determines the export; two exports with the same fingerprint are the same model."""
    labels: tuple[Label, ...]
    tensorrt: TensorRT | None = None
    """Of an engine; None for every other backend."""
    conversion: Conversion | None = None
    """Of an ONNX file in lower precision; None for what was exported from PyTorch."""
    needs_vnni: bool = False
    """Of a file that came quantised: on an x86 CPU without VNNI its sums overflow."""
    confidence: Confidence | None = None
    """None: probabilities are the network's own, as it was trained."""
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
            raise ValueError(f"confidence is calibrated for one class an image, which {self.activation} is not")
        if self.num_classes == 1 and self.activation == "softmax":
            raise ValueError("softmax of one class is always 1: export the network with --activation sigmoid")
        if self.bound_to not in (None, self.backend):
            raise ValueError(f"backend {self.backend}, but only {self.bound_to} runs it as it was meant")
        return self

    @property
    def quantized_for(self) -> QuantizationTarget | None:
        """What runs it as it was meant; None of what is not quantised."""
        calibration = self.conversion and self.conversion.calibration
        return calibration.target if calibration else None

    @property
    def bound_to(self) -> OnnxBackend | None:
        """The only backend that may run it; None: the one it names, or of an ONNX file any that runs those."""
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
    """A version that an ensemble asks."""

    name: ModelName
    version: int
    sha256: Sha256
    """Of its file: the very one that was measured."""
    accuracy: Accuracy | None
    """Measured alone, on the images that the ensemble was measured on; None where their classes were not known."""


class _Combined(_Record):
    """Several models served as one, without a file of their own."""

    schema_version: Literal[1] = 1
    name: ModelName
    version: Annotated[int, Field(ge=1)]
    created: datetime
    labels: tuple[Label, ...]
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)]
    images: int
    """How many images the figures here come from."""
    accuracy: Accuracy | None
    fingerprint: Sha256


class Ensemble(_Combined):
    """The mean of its members' probabilities on the same image (section 4.1 of 1512.03385)."""

    backend: Literal["ensemble"] = "ensemble"
    members: Annotated[tuple[Member, ...], Field(min_length=2, max_length=16)]
    agreement: float
    """Share of the images to which all members give the same best class."""


RuleKind = Literal["margin", "probability", "entropy"]
"""What tells how sure an answer is: the difference of the two largest probabilities, the largest, or their entropy."""


class Rule(_Record):
    """When the answer of a cascade's member is given, and the next one not asked."""

    kind: RuleKind
    threshold: float
    """Of `confidence.certainty`: this or more is sure enough. So an entropy's is negative."""


class Share(_Record):
    """A share of the images, 0 to 1, and what it proves of images like them: Clopper and Pearson's 95 % interval."""

    share: float
    low: float
    high: float


class Stage(Member):
    """A model or an ensemble that a cascade asks, and whether its answer is given.

    `sha256` is its file's; of an ensemble, which has none, its fingerprint.
    """

    rule: Rule | None
    """None: of the last, it is always given."""
    answered: float
    """Share of the images to which the cascade gave its answer."""
    top1_agreement: Share
    """How often it alone has the best class that the cascade is to have."""
    seconds: float | None
    """For an image, alone, measured where the cascade was made; None: it was not."""


class Cascade(_Combined):
    """Members of which each is asked only where the one before it was not sure."""

    backend: Literal["cascade"] = "cascade"
    members: Annotated[tuple[Stage, ...], Field(min_length=2, max_length=8)]
    """In the order in which they are asked."""
    reference: ModelName
    """Whose best class it is to have: as a rule that of the last member."""
    reference_version: int
    tuned_on: int
    """How many images the rule was found on; all figures here come from others."""
    top1_agreement: Share
    """With the reference."""
    min_agreement: float
    """Share that was asked for."""
    reference_accuracy: Accuracy | None
    seconds: float | None
    """For an image: what its members take, each for the images that it sees; None: it was not measured."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        *others, last = self.members
        if last.rule is not None or not all(member.rule for member in others):
            raise ValueError("each member of a cascade has a rule, but for the last")
        if len({member.name for member in self.members}) < len(self.members):
            raise ValueError("no member of a cascade may be named twice")
        return self


EXACT = "-exact"
"""What the name of a model is followed by in that of its cascade from INT8 to FP32."""
Recipe = Ensemble | Cascade
"""What is served without a file of its own."""
Entry = Manifest | Ensemble | Cascade
_entry: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="backend")])


def read_entry(folder: Path) -> Entry:
    """Read the manifest of a version's folder, of a model, an ensemble or a cascade.

    Raises:
        UnreadableError: it is missing, or cannot be read.
        ManifestError: it is no valid manifest, or its name and version are not those of its folders.
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
        ManifestError: as `read_entry`, or it is one of several models, without a file of its own.
    """
    found = read_entry(folder)
    if not isinstance(found, Manifest):
        raise ManifestError(f"{folder / FILE_NAME}: {found.name} is {called(found)}; name one of its members")
    return found


def called(recipe: Recipe) -> str:
    """What messages call it."""
    return "an ensemble" if isinstance(recipe, Ensemble) else "a cascade"


def _read_file(path: Path) -> bytes:
    """A regular file's content: a pipe of that name would be waited for without end."""
    if path.exists() and not path.is_file():
        raise UnreadableError(f"{path} is no file")
    return path.read_bytes()


def read_model_file(folder: Path, manifest: Manifest) -> bytes:
    """The model file's bytes, proven to be those the manifest names.

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
