"""Folders of images to measure on: their pixels, and the classes they are known to have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.reference import ImagesError, resized_image
from models.manifest import CropCount, Label, Preprocessing

CROPS: tuple[CropCount, ...] = get_args(CropCount)
LabelsFrom = Literal["auto", "folders", "wordnet-ids", "none"]
"""Where an image's class is known from: its folder's name (a label or a WordNet id), or the WordNet id its own name
starts with. `auto` takes the first of these that names a class for every image."""
LABELS_FROM: tuple[LabelsFrom, ...] = get_args(LabelsFrom)


def pixels(paths: Sequence[Path], preprocessing: Preprocessing, crops: CropCount = 1) -> NDArray[np.uint8]:
    """Read images as a network sees them: uint8[M, crops, H, W, 3], the centre crop first.

    Raises:
        ImagesError: one cannot be read.
    """
    return np.stack([_crops(resized_image(path, preprocessing), preprocessing, crops) for path in paths])


def classes(paths: Sequence[Path], labels: Sequence[Label], source: LabelsFrom) -> NDArray[np.int64] | None:
    """Tell the class index of each image, int64[M]; None where they are not known, or not to be used.

    Raises:
        ImagesError: the source that was asked for names no class for one of the images.
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


def _crops(image: Image.Image, preprocessing: Preprocessing, count: CropCount) -> NDArray[np.uint8]:
    side = preprocessing.crop
    windows = []
    for left, top, mirrored in preprocessing.crops(image.size, count):
        window = np.asarray(image.crop((left, top, left + side, top + side)))
        windows.append(window[:, ::-1] if mirrored else window)
    return np.stack(windows)
