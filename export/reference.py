"""The reference: an image classified by Pillow and PyTorch alone, as plainly as it can be written.

Whatever this project serves is compared with this.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from export.recipe import plan
from models.errors import ExpectedError
from models.manifest import Label, Preprocessing

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class ImagesError(ExpectedError):
    """A folder has no images, or one of them cannot be read."""


def reference_pixels(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Read an image and preprocess it: uint8[crop, crop, 3], RGB.

    The sizes are rounded as torchvision's Resize and CenterCrop do.

    Raises:
        ImagesError: it is no image that Pillow can read.
    """
    image = resized_image(path, preprocessing)
    left, top = (round((side - preprocessing.crop) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + preprocessing.crop, top + preprocessing.crop)))


def resized_image(path: Path, preprocessing: Preprocessing) -> Image.Image:
    """Read an image and resize it, as RGB, for its crops to be taken.

    Raises:
        ImagesError: it is no image that Pillow can read.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ImagesError(f"{path} cannot be read as an image: {error}") from error
    short, long = sorted(image.size)
    size = (preprocessing.resize, int(preprocessing.resize * long / short))
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    return image.resize(size if image.width <= image.height else size[::-1], filters[preprocessing.interpolation])


def reference_images(folder: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Read all images below a folder, in the order of their paths: uint8[M, crop, crop, 3], M >= 1.

    Raises:
        ImagesError: there is none, or one cannot be read.
    """
    return np.stack([reference_pixels(path, preprocessing) for path in image_paths(folder)])


def image_paths(folder: Path) -> list[Path]:
    """Find all images below a folder, in the order of their paths.

    Raises:
        ImagesError: there is none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ImagesError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def reference_logits(
    network: nn.Module, images: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Run a network on RGB images uint8[N, H, W, 3]: logits float32[N, num_classes]."""
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        logits: Tensor = network((pixels - mean) / std)
    return logits.numpy()


def load_network(
    name: str, checkpoint: Path | None = None, weights_dir: Path = Path("weights")
) -> tuple[nn.Module, Preprocessing, tuple[Label, ...]]:
    """Load a network of the zoo, in evaluation mode, with all that is needed to use it.

    Raises:
        ExpectedError: it cannot be had; the message says why.
    """
    recipe = plan(name, checkpoint=checkpoint)
    return recipe.build(recipe.obtain_weights(weights_dir)), recipe.entry.preprocessing, recipe.labels
