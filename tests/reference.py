"""The reference: an image classified by Pillow and PyTorch alone, as plainly as it can be written.

Whatever this project serves is compared with this.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import nn

from export.recipe import plan
from models.manifest import Label, Preprocessing

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


def reference_pixels(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Read an upright, opaque image and preprocess it: uint8[H, W, 3], RGB.

    Raises:
        OSError: Pillow cannot read it.
    """
    with Image.open(path) as file:
        image = file.convert("RGB")
    return cropped(
        image.resize(resized(image.size, preprocessing), FILTERS[preprocessing.interpolation]), preprocessing
    )


def resized(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """The size, as (width, height), that torchvision's and timm's transforms resize an image to."""
    height, width = preprocessing.crop
    enlarged = preprocessing.resize / max(height, width)
    target_height, target_width = round(height * enlarged), round(width * enlarged)
    match preprocessing.crop_mode:
        case "centre":  # Resize of torchvision
            short, long = sorted(size)
            new = preprocessing.resize, int(preprocessing.resize * long / short)
            return new if size[0] <= size[1] else new[::-1]
        case "squash":  # Resize of torchvision to height and width
            return target_width, target_height
        case "pad":  # ResizeKeepRatio of timm with longest=1
            ratio = max(size[1] / target_height, size[0] / target_width)
            return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))


def cropped(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """torchvision's CenterCrop, or timm's CenterCropOrPad: uint8[H, W, 3]."""
    height, width = preprocessing.crop
    across, down = max(0, width - image.width), max(0, height - image.height)
    if across or down:
        colour = [round(255 * value) for value in preprocessing.mean]
        fill = (
            colour * 3 if preprocessing.channels == "grey" else colour[:: -1 if preprocessing.channels == "bgr" else 1]
        )
        border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
        image = ImageOps.expand(image, border, (fill[0], fill[1], fill[2]))
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def load_network(
    name: str, checkpoint: Path | None = None, weights_dir: Path = Path("weights")
) -> tuple[nn.Module, Preprocessing, tuple[Label, ...]]:
    """Load a network of the zoo, in evaluation mode, with its preprocessing and labels.

    Raises:
        ExpectedError: it cannot be loaded; the message says why.
    """
    recipe = plan(name, checkpoint=checkpoint)
    return recipe.build(recipe.obtain_weights(weights_dir)), recipe.preprocessing, recipe.labels
