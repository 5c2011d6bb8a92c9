"""Every way to fit an image to any crop, compared with Pillow and the transforms of torchvision and timm."""

from io import BytesIO
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.manifest import CropCount, CropMode, Interpolation, Preprocessing
from server.images.decode import decode
from tests import reference
from tests.server.images.pictures import MAX_PIXELS, TURNED_FROM_UPRIGHT, as_stored

GREEN = (0.2, 0.9, 0.1)


def preprocessing(**changes: Any) -> Preprocessing:
    usual = {"resize": 48, "crop": (32, 48), "interpolation": "bilinear", "mean": GREEN, "std": (0.5,) * 3}
    return Preprocessing.model_validate(usual | changes)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8))


def decoded(image: Image.Image, how: Preprocessing, crops: CropCount = 1, **stored: Any) -> NDArray[np.uint8]:
    """The server's pixels of an image that is sent as PNG, or with the `stored` options: uint8[crops, H, W, 3]."""
    stream = BytesIO()
    image.save(stream, **{"format": "PNG", "compress_level": 0, **stored})
    outs = np.zeros((crops, *how.crop, 3), np.uint8)
    decode(stream.getvalue(), how, list(outs), max_pixels=MAX_PIXELS)
    return outs


def differences(pixels: NDArray[np.uint8], image: Image.Image, how: Preprocessing) -> NDArray[np.int64]:
    """Differences from the reference, in the nearer order of its two passes: Pillow takes the cheaper one first."""
    width, height = reference.resized(image.size, how)
    kind = reference.FILTERS[how.interpolation]
    away = [
        np.abs(pixels.astype(int) - reference.cropped(image.resize(first, kind).resize((width, height), kind), how))
        for first in ((width, image.height), (image.width, height))
    ]
    return min(away, key=np.max)


def nearest(image: Image.Image, how: Preprocessing) -> NDArray[np.uint8]:
    return reference.cropped(image.resize(reference.resized(image.size, how), Image.Resampling.NEAREST), how)


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
def test_nearest_takes_pillows_pixels(
    size: tuple[int, int], crop: tuple[int, int], mode: CropMode, orientation: int
) -> None:
    how = preprocessing(crop=crop, resize=max(crop), crop_mode=mode, interpolation="nearest")
    image = noise(*size)
    stored, exif = as_stored(image, orientation)
    np.testing.assert_array_equal(decoded(stored, how, exif=exif)[0], nearest(image, how))


def test_nearest_of_a_thread_of_pixels_needs_no_room_for_all_of_it() -> None:
    """Resized whole, this one would be 360,024 x 24."""
    how = preprocessing(crop=(24, 24), resize=24, interpolation="nearest")
    columns = np.random.default_rng(0).integers(0, 256, (1, 15_001, 3), np.uint8)
    start = (24 * 15_001 - 24) / 2
    expected = columns[0, ((start + np.arange(24) + 0.5) / 24).astype(int)]
    np.testing.assert_array_equal(decoded(Image.fromarray(columns), how)[0], np.tile(expected, (24, 1, 1)))


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


@pytest.mark.parametrize("orientation", TURNED_FROM_UPRIGHT)
@pytest.mark.parametrize("mode", ["centre", "squash", "pad"])
def test_turned_photos_are_fitted_upright(mode: CropMode, orientation: int) -> None:
    how = preprocessing(crop=(40, 24), crop_mode=mode)
    upright = noise(61, 83)
    stored, exif = as_stored(upright, orientation)
    pixels = decoded(stored, how, exif=exif)[0]
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


@pytest.mark.torchvision
@pytest.mark.parametrize(("mode", "theirs"), [("centre", "center"), ("squash", "squash"), ("pad", "border")])
def test_timms_own_transforms_make_the_same_pixels(mode: CropMode, theirs: str) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    from timm.data.transforms_factory import transforms_imagenet_eval

    crops = [((96, 96), 0.875), ((96, 96), 1.0)] + [((64, 96), 1.0), ((128, 64), 0.9)] * (mode != "centre")
    for size, (crop, crop_pct), interpolation in product(
        [(250, 187), (187, 250), (64, 300), (500, 10)], crops, get_args(Interpolation)
    ):
        how = preprocessing(crop=crop, resize=int(max(crop) / crop_pct), crop_mode=mode, interpolation=interpolation)
        transform = transforms_imagenet_eval(
            crop, crop_pct, theirs, interpolation=interpolation, mean=GREEN, std=(0.5,) * 3, use_prefetcher=True
        )
        image = noise(16, 12).resize(size, Image.Resampling.BICUBIC)
        expected = np.asarray(transform(image)).transpose(1, 2, 0).astype(int)
        assert np.abs(decoded(image, how)[0] - expected).max() <= 2, (size, crop, interpolation)
