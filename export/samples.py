"""Folders of images to compare and measure on: their pixels, as the server reads them, and their known classes."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from export import console
from models.errors import ExpectedError
from models.manifest import CropCount, Label, Preprocessing
from server import cpus
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
_SMALL = Preprocessing(resize=8, crop=8, interpolation="nearest", mean=(0,) * 3, std=(1,) * 3)
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


def readable(folder: Path) -> list[Path]:
    """Find all images below a folder that the server can read, in the order of their paths; print why others cannot be.

    Raises:
        ImagesError: there is none.
    """
    found = image_paths(folder)
    pool = ThreadPoolExecutor(cpus.available_cpus())
    try:
        waiting = [pool.submit(_why_not, path) for path in found]
        reasons = [each.result() for each in console.track(waiting, "read the images")]
    finally:
        pool.shutdown(cancel_futures=True)
    for reason in filter(None, reasons):
        print(f"left out: {reason}", file=sys.stderr)
    paths = [path for path, reason in zip(found, reasons, strict=True) if reason is None]
    if not paths:
        raise ImagesError(f"{folder} has no image that can be read")
    return paths


def _why_not(path: Path) -> ImagesError | None:
    try:
        _read(path, _SMALL, [np.empty((*_SMALL.crop, 3), np.uint8)])
    except ImagesError as error:
        return error
    return None


def pixels(paths: Sequence[Path], preprocessing: Preprocessing, crops: CropCount = 1) -> NDArray[np.uint8]:
    """Decode images as the server does: uint8[M, crops, H, W, 3], the centre crop first.

    Raises:
        ImagesError: the server would refuse one.
    """
    read = np.empty((len(paths), crops, *preprocessing.crop, 3), np.uint8)
    for path, outs in zip(paths, read, strict=True):
        _read(path, preprocessing, list(outs))
    return read


def _read(path: Path, preprocessing: Preprocessing, outs: Sequence[NDArray[np.uint8]]) -> None:
    try:
        decode(path.read_bytes(), preprocessing, outs, max_pixels=MAX_PIXELS)
    except OSError as error:
        raise ImagesError(f"{path} cannot be read: {error.strerror}") from error
    except ServiceError as error:
        raise ImagesError(f"{path} cannot be read as an image: {error.detail}") from error


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
