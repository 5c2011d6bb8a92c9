"""Folders of images to compare and measure on: their pixels, as the server reads them, and their known classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from models.errors import ExpectedError
from models.manifest import CropCount, Label, Preprocessing
from server.errors import ServiceError
from server.images.decode import decode
from server.settings import Settings

PHOTOS = Path(__file__).parent / "photos"
"""Photographs that come with the project, free to use: see the README there."""
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
}
"""Of all formats that the server decodes, so that phones' files are measured, too."""
MAX_PIXELS: int = Settings.model_fields["max_pixels"].default
CROPS: tuple[CropCount, ...] = get_args(CropCount)
LabelsFrom = Literal["auto", "folders", "wordnet-ids", "none"]
"""Source of an image's class: its folder's name (a label or a WordNet id), or the WordNet id at the start of its own
name. `auto` takes the first of these that names a class for every image."""
LABELS_FROM: tuple[LabelsFrom, ...] = get_args(LabelsFrom)


class ImagesError(ExpectedError):
    """A folder has no images, one of them cannot be read, or its class is not known."""


def image_paths(folder: Path) -> list[Path]:
    """Find all images below a folder, in the order of their paths.

    Raises:
        ImagesError: there is none.
    """
    try:
        any(folder.iterdir())  # glob takes a folder that cannot be read for empty
    except OSError as error:
        raise ImagesError(f"{folder}: {error.strerror}") from error
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ImagesError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def pixels(paths: Sequence[Path], preprocessing: Preprocessing, crops: CropCount = 1) -> NDArray[np.uint8]:
    """Decode images as the server does: uint8[M, crops, H, W, 3], the centre crop first.

    Raises:
        ImagesError: the server would refuse one.
    """
    read = np.empty((len(paths), crops, *preprocessing.crop, 3), np.uint8)
    for path, outs in zip(paths, read, strict=True):
        try:
            decode(path.read_bytes(), preprocessing, list(outs), max_pixels=MAX_PIXELS)
        except OSError as error:
            raise ImagesError(f"{path} cannot be read: {error.strerror}") from error
        except ServiceError as error:
            raise ImagesError(f"{path} cannot be read as an image: {error.detail}") from error
    return read


def photos(folder: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Read the centre crops of all images below a folder: uint8[M, H, W, 3], M >= 1.

    Raises:
        ImagesError: there is none, or one cannot be read.
    """
    return pixels(image_paths(folder), preprocessing)[:, 0]


def classes(paths: Sequence[Path], labels: Sequence[Label], source: LabelsFrom) -> NDArray[np.int64] | None:
    """Return the class index of each image, int64[M]; None if the classes are not known, or not to be used.

    Raises:
        ImagesError: the requested source names no class for one of the images.
    """
    by_name = _by_name(labels)
    named = {
        "folders": [path.parent.name for path in paths],
        "wordnet-ids": [path.name.partition("_")[0].partition(".")[0] for path in paths],
    }
    for kind, names in named.items():
        if source not in ("auto", kind):
            continue
        if all(name in by_name for name in names):
            return np.array([by_name[name] for name in names])
        if source == kind:
            path = next(path for path, name in zip(paths, names, strict=True) if name not in by_name)
            raise ImagesError(f"{path} names none of the model's classes by its {kind.removesuffix('s')}")
    return None


def _by_name(labels: Sequence[Label]) -> dict[str, int]:
    """Class index by label and by WordNet id. A label that two classes share names neither."""
    words = [label.label for label in labels]
    known = {word: index for index, word in enumerate(words) if words.count(word) == 1}
    return known | {label.wordnet_id: index for index, label in enumerate(labels) if label.wordnet_id}
