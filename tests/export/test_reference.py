from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.zoo import NETWORKS
from tests.reference import reference_pixels

IMAGENET = NETWORKS["resnet50"].preprocessing
CIFAR = NETWORKS["cifar_resnet20"].preprocessing


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (97, 135), (232, 232), (1, 40)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK"])
def test_any_image_becomes_one_crop(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    Image.new(mode, size).save(tmp_path / "image.tif")
    pixels = reference_pixels(tmp_path / "image.tif", IMAGENET)
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8


def test_image_of_the_right_size_is_kept_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    np.testing.assert_array_equal(reference_pixels(tmp_path / "image.png", CIFAR), pixels)


def test_crop_is_taken_where_torchvision_takes_it(tmp_path: Path) -> None:
    # No resize: the short side is 232. CenterCrop starts at round((357 - 224) / 2) = round(66.5) = 66 and at 4.
    columns, rows = np.meshgrid(np.arange(357), np.arange(232))
    image = np.stack([columns % 256, rows, columns // 256], axis=2).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    np.testing.assert_array_equal(reference_pixels(tmp_path / "image.png", IMAGENET)[0, 0], [66, 4, 0])
