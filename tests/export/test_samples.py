from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.reference import ImagesError, image_paths, reference_pixels
from export.samples import classes, pixels
from export.to_onnx import PHOTOS
from models.manifest import Label, Preprocessing
from models.zoo import ENTRIES

LABELS = (
    Label(label="cat", wordnet_id="n1"),
    Label(label="crane", wordnet_id="n2"),
    Label(label="crane", wordnet_id="n3"),
)


def test_centre_crop_is_the_references() -> None:
    preprocessing = ENTRIES["efficientnet_lite0"].preprocessing
    paths = image_paths(PHOTOS)
    for crops in (pixels(paths, preprocessing, 1), pixels(paths, preprocessing, 10)):
        for path, images in zip(paths, crops, strict=True):
            np.testing.assert_array_equal(images[0], reference_pixels(path, preprocessing))


def test_ten_crops_are_centre_corners_and_their_mirrors(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 11, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    preprocessing = Preprocessing(resize=8, crop=4, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    crops = pixels([tmp_path / "noise.png"], preprocessing, 10)[0]
    expected = [noise[2:6, 4:8], noise[:4, :4], noise[:4, -4:], noise[-4:, :4], noise[-4:, -4:]]
    np.testing.assert_array_equal(crops[:5], expected)
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/1.jpg", "n2/2.jpg"], [0, 1]),
        (["n1_cat.jpg", "photos/n3.jpg", "n2_0001.JPEG"], [0, 2, 1]),
        (["cat/1.jpg", "crane/2.jpg"], None),  # which of the two cranes?
        (["cat/1.jpg", "dog/2.jpg"], None),
    ],
)
def test_class_is_known_by_folder_or_wordnet_id(names: list[str], expected: list[int] | None) -> None:
    known = classes([Path(name) for name in names], LABELS, "auto")
    assert (None if known is None else known.tolist()) == expected


def test_known_classes_need_not_be_used() -> None:
    assert classes([Path("cat/1.jpg")], LABELS, "none") is None


def test_class_that_must_be_known_and_is_not_is_an_error() -> None:
    with pytest.raises(ImagesError, match=r"dog/2\.jpg"):
        classes([Path("cat/1.jpg"), Path("dog/2.jpg")], LABELS, "folders")
