"""Expected logits: those of the user's own model for some images, which its export must reproduce.

The parity gate compares a file with the network that was built here. This gate compares the network and the
preprocessing with the user's model: whether the right network, mean and std, resize and crop were chosen.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export import backends, comparison, repository, samples
from export.console import step
from models.errors import ExpectedError
from models.manifest import Expectation, Manifest
from models.weights import sha256_of

MAX_ERROR = 0.05
"""Allowed error of all logits together: the root mean square of the differences as a share of that of the expected
logits; for softmax, each image's mean over the classes is subtracted first.

Measured with the trained EfficientNet-Lite0 on 87 photos: 0.0025 if Pillow preprocessed them alike, 0.020 if tensors
were resized instead of Pillow's images; 0.07 with Lanczos and 0.11 with bilinear instead of bicubic, 0.20 with a resize
of 248 instead of 256, 0.42 or more with another mean and std, BGR or squashed.
"""
MAX_OTHERS = 0.02
"""Share of the images that may have another best class, since two classes may be almost equal; one image always may."""
_BESIDE = ".npy"


class ExpectationError(ExpectedError):
    """Logits cannot be read, or the export does not reproduce them."""


@dataclass(frozen=True)
class Expected:
    """The logits of the user's own model."""

    source: str
    """The name of the file or folder."""
    paths: tuple[Path, ...]
    """The images."""
    logits: NDArray[np.float64]
    """float64[images, classes]"""

    def digest(self) -> str:
        """Return the hex SHA-256 of images and logits."""
        return repository.digest([[sha256_of(path) for path in self.paths], self.logits.tolist()])


def read(source: Path, images: Path) -> Expected:
    """Read expected logits.

    Args:
        source: float[M, classes] as `numpy.save` writes it, a row for each image of `images` in the order of their
            paths; or a folder of images, each with its own logits beside it: cat.jpg and cat.npy.
        images: folder of images, if `source` is a file; ignored otherwise.

    Raises:
        ExpectationError: they are not logits, or not as many as there are images.
        ImagesError: there are no images.
    """
    if not source.is_dir():
        paths = samples.image_paths(images)
        logits = _load(source)
        if logits.ndim != 2 or len(logits) != len(paths):
            raise ExpectationError(
                f"{source} has the shape {logits.shape}, but {images} has {len(paths)} images: save logits as"
                f" [{len(paths)}, classes], in the order of the images' paths"
            )
        return Expected(source.name, tuple(paths), _sound(logits, source))
    paths = samples.image_paths(source)
    rows = []
    for path in paths:
        beside = path.with_suffix(_BESIDE)
        if not beside.is_file():
            raise ExpectationError(f"{path} has no logits beside it: save them as {beside.name}")
        rows.append(_load(beside).reshape(-1))
    if len({row.size for row in rows}) > 1:
        raise ExpectationError(f"the logits in {source} differ in their number of classes")
    return Expected(source.resolve().name, tuple(paths), _sound(np.stack(rows), source))


def _load(path: Path) -> NDArray[np.float64]:
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float64)
    except OSError as error:
        raise ExpectationError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError, AttributeError) as error:  # of numpy, for anything that it did not write
        raise ExpectationError(f"{path} holds no logits as numpy.save writes an array of numbers") from error


def _sound(logits: NDArray[np.float64], source: Path) -> NDArray[np.float64]:
    if not np.isfinite(logits).all():
        raise ExpectationError(f"{source} has logits that are not finite")
    if logits.shape[1] > 1 and (logits >= 0).all() and np.allclose(logits.sum(1), 1, atol=1e-3):
        raise ExpectationError(f"{source} has probabilities: save what the network gives before softmax")
    return logits


def check(draft: Manifest, content: bytes, expected: Expected) -> Expectation:
    """Compare a file, run by its backend of the server on images read as the server reads them, with expected logits.

    Raises:
        ExpectationError: the logits differ too much.
        ImagesError: an image cannot be read.
    """
    count = expected.logits.shape[1]
    if count != draft.num_classes:
        raise ExpectationError(f"{expected.source} has logits of {count} classes, the model has {draft.num_classes}")
    with closing(backends.load(draft, content)) as backend:
        logits = comparison.answers([backend], expected.paths, draft)[0].logits[:, 0].astype(np.float64)
    error = _error(logits, expected.logits, centred=draft.activation == "softmax")
    agreement = float((comparison.best(logits) == comparison.best(expected.logits)).mean())
    others = round((1 - agreement) * len(logits))
    if not error <= MAX_ERROR or others > max(1, MAX_OTHERS * len(logits)):
        raise ExpectationError(_disagreement(logits, expected, error, agreement))
    return Expectation(
        source=expected.source,
        images=len(logits),
        top1_agreement=agreement,
        logit_error=error,
        logit_error_allowed=MAX_ERROR,
    )


def hold(draft: Manifest, content: bytes, expected: Expected | None) -> Manifest:
    """Record in a manifest how close its file is to the expected logits, if there are any.

    Raises:
        ExpectedError: as `check`.
    """
    if expected is None:
        return draft
    with step(f"compare with {expected.source}"):
        return draft.model_copy(update={"expectation": check(draft, content, expected)})


def _error(logits: NDArray[np.float64], expected: NDArray[np.float64], *, centred: bool) -> float:
    if centred:  # softmax ignores what all logits of an image have in common
        logits, expected = (values - values.mean(1, keepdims=True) for values in (logits, expected))
    return float(np.linalg.norm(logits - expected) / max(float(np.linalg.norm(expected)), np.finfo(np.float64).tiny))


def _disagreement(logits: NDArray[np.float64], expected: Expected, error: float, agreement: float) -> str:
    found = (
        f"this is not the model of {expected.source}: its logits differ by {error:.1%} from those ({MAX_ERROR:.0%} is"
        f" allowed), and the best class of {1 - agreement:.0%} of the {len(logits)} images is another"
    )
    nearest = [int(np.argmin(np.linalg.norm(expected.logits - row, axis=1))) for row in logits]
    if sorted(nearest) == list(range(len(nearest))) != nearest:
        return f"{found}; they would fit in another order: save them in the order of the images' sorted paths"
    return (
        f"{found}: nothing was added to the repository. The cause may be --mean and --std, --channels, --resize and"
        " --crop, --interpolation, or the network: several may fit the same file"
    )
