"""Every way to fit an image to any crop: what Pillow, torchvision's and timm's transforms make of it."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from models.manifest import CropCount, CropMode, Interpolation, Preprocessing
from server.images.decode import decode
from tests import reference
from tests.server.images.pictures import MAX_PIXELS

GREEN = (0.2, 0.9, 0.1)
STORED_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation to how an upright photo becomes what is stored with it."""


def preprocessing(**changes: Any) -> Preprocessing:
    usual = {"resize": 48, "crop": (32, 48), "interpolation": "bilinear", "mean": GREEN, "std": (0.5,) * 3}
    return Preprocessing.model_validate(usual | changes)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8))


def decoded(image: Image.Image, how: Preprocessing, crops: CropCount = 1, **stored: Any) -> NDArray[np.uint8]:
    """The server's pixels of an image that is sent as PNG, or as it is `stored`: uint8[crops, H, W, 3]."""
    stream = BytesIO()
    image.save(stream, **{"format": "PNG", "compress_level": 0, **stored})
    outs = np.zeros((crops, *how.crop, 3), np.uint8)
    decode(stream.getvalue(), how, list(outs), max_pixels=MAX_PIXELS)
    return outs


def differences(pixels: NDArray[np.uint8], image: Image.Image, how: Preprocessing) -> NDArray[np.int64]:
    """From the reference, in whichever order of the two passes is nearer: Pillow takes the cheaper one first."""
    width, height = reference.resized(image.size, how)
    kind = reference.FILTERS[how.interpolation]
    away = [
        np.abs(pixels.astype(int) - reference.cropped(image.resize(first, kind).resize((width, height), kind), how))
        for first in ((width, image.height), (image.width, height))
    ]
    return min(away, key=np.max)


def nearest(image: Image.Image, how: Preprocessing) -> NDArray[np.uint8]:
    """What Pillow computes without its rounding errors, which count where a centre lies on the edge of a pixel."""
    new = reference.resized(image.size, how)
    columns, rows = (((2 * np.arange(new[axis]) + 1) * image.size[axis]) // (2 * new[axis]) for axis in (0, 1))
    return reference.cropped(Image.fromarray(np.asarray(image)[rows[:, np.newaxis], columns]), how)


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    crop=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    margin=st.integers(0, 20),
    mode=st.sampled_from(["centre", "squash", "pad"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
)
@example(size=(150, 1), crop=(24, 50), margin=3, mode="pad", interpolation="lanczos")
@example(size=(1, 149), crop=(50, 24), margin=0, mode="pad", interpolation="bicubic")
@example(size=(97, 61), crop=(31, 45), margin=0, mode="squash", interpolation="lanczos")
@example(size=(61, 97), crop=(45, 31), margin=5, mode="centre", interpolation="lanczos")
def test_any_image_is_fitted_to_any_crop_as_the_reference_does_it(
    size: tuple[int, int], crop: tuple[int, int], margin: int, mode: CropMode, interpolation: Interpolation
) -> None:
    how = preprocessing(crop=crop, resize=max(crop) + margin, crop_mode=mode, interpolation=interpolation)
    image = noise(*size)
    pixels = decoded(image, how)[0]
    assert differences(pixels, image, how).max() <= 2


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    crop=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    mode=st.sampled_from(["centre", "squash", "pad"]),
    orientation=st.integers(1, 8),
)
@example(size=(96, 64), crop=(32, 48), mode="squash", orientation=3)  # each centre lies on the edge of a pixel
def test_nearest_takes_the_pixel_under_the_centre(
    size: tuple[int, int], crop: tuple[int, int], mode: CropMode, orientation: int
) -> None:
    how = preprocessing(crop=crop, resize=max(crop), crop_mode=mode, interpolation="nearest")
    image = noise(*size)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = image.transpose(STORED_BY[orientation]) if orientation in STORED_BY else image
    np.testing.assert_array_equal(decoded(stored, how, exif=exif)[0], nearest(image, how))


def test_nearest_is_pillows_where_nothing_is_rounded() -> None:
    how = preprocessing(resize=64, crop=(64, 48), crop_mode="squash", interpolation="nearest")
    image = noise(144, 200)
    expected = image.resize((48, 64), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(decoded(image, how)[0], np.asarray(expected))


@pytest.mark.parametrize("mode", ["centre", "squash", "pad"])
@pytest.mark.parametrize("interpolation", ["lanczos", "nearest"])
def test_a_large_photo_is_halved_only_where_that_does_not_matter(mode: CropMode, interpolation: Interpolation) -> None:
    """A photo of 400 x 320 may be decoded at half the size, but not for its nearest pixels."""
    how = preprocessing(crop_mode=mode, interpolation=interpolation)
    photo = noise(20, 16).resize((400, 320), Image.Resampling.BICUBIC)
    stored: dict[str, Any] = {"format": "JPEG", "quality": 100, "subsampling": 0}
    stream = BytesIO()
    photo.save(stream, **stored)
    found, whole = decoded(photo, how, **stored)[0], Image.open(stream).convert("RGB")
    if interpolation == "nearest":
        np.testing.assert_array_equal(found, nearest(whole, how))
    else:
        assert differences(found, whole, how).mean() < 1


@pytest.mark.parametrize("orientation", STORED_BY)
@pytest.mark.parametrize("mode", ["centre", "squash", "pad"])
def test_turned_photos_are_fitted_upright(mode: CropMode, orientation: int) -> None:
    how = preprocessing(crop=(40, 24), crop_mode=mode)
    upright = noise(61, 83)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = decoded(upright.transpose(STORED_BY[orientation]), how, exif=exif)[0]
    assert differences(pixels, upright, how).max() <= 2


@pytest.mark.parametrize(("channels", "colour"), [("rgb", GREEN), ("bgr", GREEN[::-1]), ("grey", (0.5,))])
def test_what_is_missing_is_filled_with_the_mean_colour(channels: str, colour: tuple[float, ...]) -> None:
    how = preprocessing(crop=32, resize=32, crop_mode="pad", channels=channels, mean=colour, std=(0.5,) * len(colour))
    pixels = decoded(Image.new("RGB", (64, 30), "white"), how)[0]
    assert pixels[8:23].min() == 255  # 15 of 32 rows, with 8 above and 9 below
    expected = (128, 128, 128) if channels == "grey" else (51, 230, 26)
    assert (pixels[:8] == expected).all()
    assert (pixels[23:] == expected).all()


def test_ten_crops_of_a_padded_image_are_its_corners_where_it_has_some() -> None:
    how = preprocessing(crop=(32, 32), resize=40, crop_mode="pad")
    image = noise(40, 20)
    crops = decoded(image, how, 10)
    rows = np.full((32, 40, 3), (51, 230, 26), np.uint8)
    rows[6:26] = np.asarray(image)
    expected = [rows[:, 4:36], rows[:, :32], rows[:, 8:], rows[:, :32], rows[:, 8:]]
    np.testing.assert_array_equal(crops[:5], expected)
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
