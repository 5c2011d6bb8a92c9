"""The reference: an image classified by Pillow and PyTorch alone, as plainly as it can be written.

Whatever this project serves is compared with this.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from export.recipe import plan
from models.manifest import Label, Preprocessing


def reference_pixels(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Read an upright, opaque image and preprocess it: uint8[H, W, 3], RGB.

    The sizes are rounded as torchvision's Resize and CenterCrop do.

    Raises:
        OSError: it is no image that Pillow can read.
    """
    with Image.open(path) as file:
        image = file.convert("RGB")
    short, long = sorted(image.size)
    size = (preprocessing.resize, int(preprocessing.resize * long / short))
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    image = image.resize(size if image.width <= image.height else size[::-1], filters[preprocessing.interpolation])
    height, width = preprocessing.crop
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def load_network(
    name: str, checkpoint: Path | None = None, weights_dir: Path = Path("weights")
) -> tuple[nn.Module, Preprocessing, tuple[Label, ...]]:
    """Load a network of the zoo, in evaluation mode, with all that is needed to use it.

    Raises:
        ExpectedError: it cannot be had; the message says why.
    """
    recipe = plan(name, checkpoint=checkpoint)
    return recipe.build(recipe.obtain_weights(weights_dir)), recipe.preprocessing, recipe.labels
