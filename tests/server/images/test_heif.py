"""HEIC, as phones send it."""

import io
import struct

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from server.errors import Code, ServiceError
from tests.server.images import heifs
from tests.server.images.pictures import decoded, difference, encoded, picture, preprocessing, refusal

SIDE = 64
WHOLE = preprocessing(SIDE, SIDE)
PHOTO = picture(SIDE, SIDE)
HEIC = encoded(PHOTO, "HEIF")


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("major", [b"heic", b"heix", b"hevc", b"mif1", b"msf1"])
def test_a_photo_of_any_brand_is_decoded(major: bytes) -> None:
    data = HEIC[:8] + major + HEIC[12:]
    assert np.array_equal(decoded(data, WHOLE), decoded(HEIC, WHOLE))
    assert difference(decoded(data, WHOLE), PHOTO) <= 6


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirror", [None, 0, 1])
@pytest.mark.parametrize("said", [1, 3, 6])
def test_a_photo_is_turned_once_by_the_container_alone(quarters: int, mirror: int | None, said: int) -> None:
    """EXIF data may repeat the orientation (ISO/IEC 23000-22, 7.3.6.8: readers ignore it)."""
    expected = PHOTO.rotate(90 * quarters)
    if mirror is not None:
        expected = expected.transpose([Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_LEFT_RIGHT][mirror])
    data = heifs.turned(encoded(PHOTO, "HEIF", exif=exif(said)), quarters, mirror)
    assert difference(decoded(data, WHOLE), expected) <= 6


def test_a_photo_of_10_bits_gives_its_colours() -> None:
    wide = (np.asarray(PHOTO).astype(np.uint16) * 257).tobytes()
    stream = io.BytesIO()
    pillow_heif.encode("RGB;16", PHOTO.size, wide, stream, quality=95)
    assert pillow_heif.open_heif(stream, convert_hdr_to_8bit=False).info["bit_depth"] == 10
    assert difference(decoded(stream.getvalue(), WHOLE), PHOTO) <= 6


def test_a_photo_in_tiles_is_put_together() -> None:
    tiled = encoded(picture(200, 200), "HEIF", tile_size=64)
    assert b"grid" in tiled
    assert difference(decoded(tiled, WHOLE), decoded(encoded(picture(200, 200), "PNG"), WHOLE)) <= 6


def test_of_several_images_the_primary_one_counts() -> None:
    data = encoded(PHOTO, "HEIF", save_all=True, append_images=[PHOTO.rotate(90)], primary_index=0)
    assert difference(decoded(data, WHOLE), PHOTO) <= 6


def test_too_many_pixels_are_seen_in_the_container() -> None:
    assert refusal(HEIC, max_pixels=SIDE * SIDE - 1) is Code.TOO_MANY_PIXELS


@pytest.mark.parametrize("side", [128, 1024, 16384, 65536])
def test_the_container_bounds_what_the_decoder_allocates(side: int) -> None:
    """Even if the header of the coded picture says another size."""
    assert np.array_equal(decoded(heifs.coded_as(HEIC, SIDE, SIDE), WHOLE), decoded(HEIC, WHOLE))
    assert refusal(heifs.coded_as(HEIC, side, side)) is Code.BROKEN_IMAGE


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_a_part_of_a_photo_is_broken(share: float) -> None:
    assert refusal(HEIC[: int(share * len(HEIC))]) is Code.BROKEN_IMAGE


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        (b"vvc1", "VVC"),
        (b"avc1", "AVC"),
        (b"j2k1", "JPEG 2000"),
        (b"jpeg", "JPEG"),
        (b"unci", "uncompressed"),
        (b"av01", "AV1"),
    ],
)
def test_another_codec_in_heif_is_named(codec: bytes, name: str) -> None:
    data = (HEIC[:8] + b"mif1" + HEIC[12:]).replace(b"hvc1", codec)
    with pytest.raises(ServiceError, match=f"this is HEIF of {name}") as caught:
        decoded(data)
    assert caught.value.code is Code.NOT_AN_IMAGE


def test_a_video_of_hevc_is_named() -> None:
    data = struct.pack(">I", 24) + b"ftyphevc" + bytes(4) + b"msf1hevc" + struct.pack(">I", 16) + b"moov" + bytes(8)
    with pytest.raises(ServiceError, match="this is a video or an image sequence") as caught:
        decoded(data)
    assert caught.value.code is Code.NOT_AN_IMAGE
