"""The manifest: all that is known about one version of an exported model, and the only place it is written down.

`export/` writes it beside the model file, `server/` reads it and takes preprocessing, labels and digests from nowhere
else. This module needs neither torch nor ONNX, so that a serving machine can import it.
"""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FILE_NAME = "manifest.json"

INPUT_NAME = "images"
"""Graph input: uint8[N, H, W, 3], RGB."""
PROBABILITIES_NAME = "probabilities"
"""Graph output: float32[N, top_k], softmax, largest first."""
INDICES_NAME = "indices"
"""Graph output: int32[N, top_k], class indices of the probabilities."""
LOGITS_NAME = "logits"
"""Graph output: float32[N, num_classes], for checks; serving does not ask for it."""

MAX_TOP_K = 100
"""The graph ranks min(MAX_TOP_K, num_classes) classes."""

ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.@-]{0,99}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Channels = tuple[float, float, float]


class ManifestError(ValueError):
    """A manifest or a file it names is missing, malformed or not what the digest says."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(_Record):
    """What a class is called."""

    label: str
    wordnet_id: str | None = None


class Preprocessing(_Record):
    """From an RGB image to the network's input.

    Resize the short side to `resize` (long side truncated to an integer, as torchvision does), centre-crop
    `crop` x `crop`; the graph then computes (pixel / 255 - mean) / std.
    """

    resize: Annotated[int, Field(ge=1, le=4096)]
    crop: Annotated[int, Field(ge=1, le=4096)]
    interpolation: Literal["bilinear", "bicubic"]
    mean: Channels
    std: Channels

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self


class Weights(_Record):
    """Where the parameters came from. `random` weights are untrained: answers mean nothing."""

    source: str
    sha256: Sha256 | None
    random: bool = False


class Accuracy(_Record):
    """Published ImageNet or CIFAR accuracy, in percent."""

    top1: float
    top5: float | None = None


class Parity(_Record):
    """How close the exported graph is to PyTorch in FP32, over all batches and images that were compared."""

    batch_sizes: tuple[int, ...]
    images: int
    real_images: int
    max_logit_error: float
    max_logit_error_allowed: float
    top1_agreement: float


class ModelFile(_Record):
    """One file of the version's folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    sha256: Sha256
    size_bytes: int


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
    num_classes: Annotated[int, Field(ge=1)]
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)]
    backend: Literal["onnx"]
    precision: Literal["fp32"]
    opset: int
    file: ModelFile
    parity: Parity | None
    tools: dict[str, str]
    fingerprint: Sha256
    """Digest of all that determines the export; two exports with the same fingerprint are the same model."""
    labels: tuple[Label, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.labels) != self.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.num_classes} classes")
        if self.top_k > self.num_classes:
            raise ValueError(f"top_k {self.top_k} is more than the {self.num_classes} classes")
        return self

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image in the batch: (H, W, 3), uint8."""
        return self.preprocessing.crop, self.preprocessing.crop, 3


def read(folder: Path) -> Manifest:
    """Read the manifest of a version's folder.

    Raises:
        ManifestError: it is missing, is no valid manifest, or its name and version are not those of its folders.
    """
    path = folder / FILE_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ManifestError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error
    if (folder.parent.name, folder.name) != (manifest.name, str(manifest.version)):
        raise ManifestError(f"{path}: it describes {manifest.name} version {manifest.version}, not this folder")
    return manifest


def read_model_file(folder: Path, manifest: Manifest) -> bytes:
    """The model file's bytes, proven to be those the manifest names.

    Raises:
        ManifestError: the file cannot be read or its digest differs.
    """
    path = folder / manifest.file.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != manifest.file.sha256:
        raise ManifestError(f"{path}: its SHA-256 is not the manifest's; export the model again")
    return content
