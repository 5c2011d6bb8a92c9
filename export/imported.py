"""From a foreign ONNX file to a verified model: what the file tells, what is assumed, and the parity gate.

The gate compares with the file itself in ONNX Runtime, on images that the reference normalised.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export import expect, last_layer, parity, repository, samples, splice
from export.console import step
from export.convert import ONNX_FILE
from export.expect import Expected
from export.onnx_file import OnnxFile, OnnxFileError
from export.options import Stated, as_options
from export.original import Meaning, Original, Scores, fails
from export.parity import Known
from export.recipe import OPSET, TOOLS
from export.reference import normalised, reference_logits
from models import labels
from models.errors import ExpectedError, first_line
from models.manifest import MAX_TOP_K, Label, Manifest, Preprocessing, Weights
from models.weights import sha256_of
from models.zoo import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARCHITECTURE = "imported"
_GREY: tuple[tuple[float, ...], tuple[float, ...]] = ((0.449,), (0.226,))
"""ImageNet's mean and std, averaged over the channels."""
_PROBES = 4
_SMALL = 128
"""Networks for images below this side, as of CIFAR and MNIST, are assumed to see them whole."""
_OUR_SOURCES = ("onnx_file.py", "original.py", "splice.py", "graph.py", "last_layer.py")


@dataclass(frozen=True)
class Import:
    """A file, and everything that determines its complete graph."""

    file: OnnxFile
    original: Original
    meaning: Meaning
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    photos: "NDArray[np.uint8]"
    """uint8[M, H, W, 3], to compare on."""
    expected: Expected | None = None

    @property
    def top_k(self) -> int:
        """How many classes the graph ranks."""
        return min(MAX_TOP_K, self.meaning.num_classes)

    def fingerprint(self) -> str:
        """Digest everything that determines the complete graph."""
        return repository.digest(
            {
                "file": hashlib.sha256(self.file.content).hexdigest(),
                "ends": [self.file.input.name, self.file.output.name, self.file.layout],
                "taken": [self.meaning.inner, self.meaning.taken.scores, self.meaning.activation],
                "preprocessing": self.preprocessing.model_dump(),
                "labels": [label.model_dump() for label in self.labels],
                "top_k": self.top_k,
                "opset": OPSET,
                "tools": TOOLS,
                "sources": [sha256_of(Path(__file__).with_name(name)) for name in _OUR_SOURCES],
                **({"expected": self.expected.digest()} if self.expected else {}),
            }
        )

    def assumed(self, stated: Stated) -> str:
        """Return, as options, the preprocessing that was neither stated nor recorded in the file."""
        known = replace(stated, crop=self.preprocessing.crop)
        if self.file.kind == np.uint8:
            known = replace(known, mean=self.preprocessing.mean, std=self.preprocessing.std)
        return as_options(self.preprocessing, known)

    def describe(self, name: str, content: bytes) -> Manifest:
        """Draft the complete graph's manifest before the parity gate."""
        return Manifest(
            name=name,
            version=1,
            created=datetime.now(UTC),
            architecture=ARCHITECTURE,
            parameters=self.file.parameters,
            weights=Weights(source=self.file.path.name, sha256=sha256_of(self.file.path)),
            published_accuracy=None,
            preprocessing=self.preprocessing,
            activation=self.meaning.activation,
            num_classes=self.meaning.num_classes,
            top_k=self.top_k,
            backend="onnx",
            precision=self.file.precision,
            needs_vnni=self.file.needs_vnni,
            opset=max(OPSET, self.file.opset),
            file=repository.model_file(ONNX_FILE, content),
            parity=None,
            tools=TOOLS,
            fingerprint=self.fingerprint(),
            labels=self.labels,
        )

    def make(self, name: str) -> tuple[Manifest, bytes]:
        """Make the complete graph, and verify that it computes what the file does on random pixels and the photos.

        Raises:
            ExpectedError: the graph cannot be changed as needed, or fails the parity gate.
        """
        frozen = self.original.batch
        try:
            with step("complete the graph"):
                content = splice.complete(self.file, self.meaning, frozen, self.preprocessing, self.top_k, OPSET)
        except ExpectedError:
            raise
        except Exception as failure:  # the libraries' errors have no common class
            raise OnnxFileError(
                f"the graph of {self.file.path} cannot be completed: {first_line(failure)}"
            ) from failure
        if frozen is not None and (reason := fails(content, np.zeros((3, *self.preprocessing.crop, 3), np.uint8))):
            raise self._stays_frozen(frozen, reason)
        draft = self.describe(name, content).model_copy(update=last_layer.sizes(content)._asdict())
        original = partial(self.original.logits, meaning=self.meaning)
        try:
            with step(f"compare with {self.file.path.name}"):
                measured = parity.check(
                    draft,
                    content,
                    lambda images: Known(reference_logits(original, images, self.preprocessing)),
                    self.photos,
                    origin=self.file.path.name,
                    head=last_layer.head(content),
                )
        except parity.ParityError as error:
            if frozen is None:
                raise
            raise self._stays_frozen(frozen, str(error)) from error
        return expect.hold(draft.model_copy(update={"parity": measured}), content, self.expected), content

    def _stays_frozen(self, frozen: int, reason: str) -> OnnxFileError:
        return OnnxFileError(
            f"{self.file.path} was exported for batches of {frozen}, which could not be changed: export it once more"
            f" with a free batch size ({reason})"
        )


def customary(file: OnnxFile, stated: Stated) -> Preprocessing:
    """Return the most likely preprocessing, which an ONNX file does not record: that of ImageNet's networks.

    Raises:
        OnnxFileError: the size of the images is free and not stated, or stated otherwise than in the file.
    """
    height, width = file.size
    if stated.crop is not None:
        wanted = height or stated.crop[0], width or stated.crop[1]
        if wanted != stated.crop:
            raise OnnxFileError(
                f"{file.path} takes images of {_size(*wanted)}, not of {_size(*stated.crop)}: leave out --crop"
            )
        height, width = stated.crop
    if height is None or width is None:
        raise OnnxFileError(f"{file.path} takes images of any size: choose one with --crop HxW")
    grey = file.channels == 1
    mean, std = _GREY if grey else (IMAGENET_MEAN, IMAGENET_STD)
    if file.kind == np.uint8:  # the network normalises them itself
        mean, std = (0.0,) * file.channels, (1 / 255,) * file.channels
    side = max(height, width)
    return Preprocessing(
        resize=side if min(height, width) < _SMALL else round(side / 0.875),
        crop=(height, width),
        interpolation="bilinear",
        channels="grey" if grey else "rgb",
        mean=mean,
        std=std,
    )


def preprocessing_of(file: OnnxFile, stated: Stated) -> Preprocessing:
    """Complete the stated preprocessing by the customary one.

    Raises:
        ExpectedError: the stated options contradict each other, or the file.
    """
    if file.kind == np.uint8 and (stated.mean or stated.std):
        raise OnnxFileError(f"{file.path} takes pixels as bytes and normalises them itself: leave out --mean and --std")
    if stated.channels is not None and (stated.channels == "grey") != (file.channels == 1):
        raise OnnxFileError(
            f"{file.path} takes images with {file.channels} channels: --channels {stated.channels} does not fit"
        )
    return stated.over(customary(file, stated))


def plan(
    file: OnnxFile,
    stated: Stated,
    scores: Scores | None,
    labels_file: Path | None,
    images: Path,
    expected: Expected | None = None,
) -> Import:
    """Find out what a file's scores are, and how images must be prepared for it.

    Args:
        file: the file.
        stated: the preprocessing and activation that the user stated.
        scores: what its scores are; None: to be found out.
        labels_file: the classes' names; None: they are numbered.
        images: a folder of photos to try beside noise.
        expected: the user's own logits, which the export must reproduce.

    Raises:
        ExpectedError: the file cannot be run, has no scores, or contradicts what was stated.
    """
    preprocessing = preprocessing_of(file, stated)
    photos = samples.photos(images, preprocessing)
    noise = np.random.default_rng(0).integers(0, 256, (_PROBES, *preprocessing.crop, 3), np.uint8)
    original = Original(file)
    asked = normalised(np.concatenate([noise, photos[:_PROBES]]), preprocessing)
    meaning = original.meaning(asked.numpy(), stated.activation, scores)
    classes = labels.read(labels_file) if labels_file else labels.numbered(meaning.num_classes)
    if len(classes) != meaning.num_classes:
        raise OnnxFileError(f"{file.path} has {meaning.num_classes} classes, {labels_file} has {len(classes)} labels")
    return Import(file, original, meaning, preprocessing, classes, photos, expected)


def _size(height: int, width: int) -> str:
    return f"{height}x{width}"
