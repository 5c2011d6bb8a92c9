"""Bounds on memory and time while an image is decoded: large photos pass, and the bounds hold."""

import json
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.errors import Code, ServiceError
from server.images.bounds import PIXEL_BYTES
from tests.server.images.pictures import decoded, difference, encoded, picture, preprocessing, refusal

USUAL = preprocessing(232, 224)
MAX_PIXELS = 52_428_800
"""The default setting."""


def enlarged(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header says another size. It lacks the other pixels, which libjpeg tolerates if it has an end."""
    at = next(data.index(bytes((0xFF, kind))) for kind in (0xC0, 0xC2) if bytes((0xFF, kind, 0, 17)) in data)
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


@pytest.mark.parametrize("size", [(8160, 6144), (9248, 6936), (12000, 9000), (16320, 12240)])
def test_photos_of_phones_are_decoded(size: tuple[int, int]) -> None:
    """They have 50, 64, 108 and 200 megapixels."""
    assert decoded(enlarged(encoded(picture(), "JPEG"), *size), USUAL, MAX_PIXELS).shape == (224, 224, 3)


def test_a_progressive_photo_of_108_megapixels_is_decoded() -> None:
    data = enlarged(encoded(picture(), "JPEG", progressive=True), 12000, 9000)
    assert decoded(data, USUAL, MAX_PIXELS).shape == (224, 224, 3)


def test_a_photo_that_is_halved_counts_as_what_is_kept() -> None:
    data = encoded(picture(800, 600), "JPEG")
    how = preprocessing(64, 64)  # 800 x 600 is decoded as 200 x 150
    assert refusal_of(data, how, 200 * 150 * 10 // PIXEL_BYTES - 1) is Code.TOO_MANY_PIXELS
    assert difference(decoded(data, how, 200 * 150 * 10 // PIXEL_BYTES), decoded(data, how)) == 0


def refusal_of(data: bytes, how: object, max_pixels: int) -> Code:
    with pytest.raises(ServiceError) as caught:
        decoded(data, how, max_pixels)  # type: ignore[arg-type]
    return caught.value.code


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_other_formats_count_in_full(format_name: str) -> None:
    data = encoded(picture(80, 100), format_name)
    assert decoded(data, max_pixels=8000).any()
    assert refusal(data, max_pixels=7999) is Code.TOO_MANY_PIXELS


def test_what_a_photo_in_several_scans_keeps_of_itself_counts() -> None:
    """These are its coefficients, two bytes each, at full size: here three for each pixel."""
    data = encoded(picture(800, 600), "JPEG", progressive=True, subsampling=0)
    how = preprocessing(64, 64)
    needed = 200 * 150 * 10 + 800 * 600 * 3 * 2
    assert refusal_of(data, how, needed // PIXEL_BYTES - 1) is Code.TOO_MANY_PIXELS
    assert difference(decoded(data, how, needed // PIXEL_BYTES), decoded(data, how)) == 0


def test_a_photo_larger_than_any_camera_s_is_refused() -> None:
    data = encoded(picture(), "JPEG")
    for size in ((20_000, 12_000), (65_535, 65_535)):
        assert refusal_of(enlarged(data, *size), USUAL, MAX_PIXELS) is Code.TOO_MANY_PIXELS


def test_scans_of_a_large_photo_are_bounded_together() -> None:
    """Each visits every pixel, however little data it has."""
    data = encoded(picture(), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    many = data[:-2] + last_scan * 80 + data[-2:]
    assert decoded(many).any()
    assert refusal_of(enlarged(many, 12000, 9000), USUAL, MAX_PIXELS) is Code.TOO_MANY_PIXELS


@pytest.mark.parametrize("part", [b"\xff\xe0\0\2", b"\xff\xd8", b"\xff\xd0", b"\xff\x01", b"\xff"])
def test_a_flood_of_markers_behind_the_first_scan_takes_no_time(part: bytes) -> None:
    """Python would look at them one by one for seconds; libjpeg skips them, and tolerates them if there is an end."""
    data = encoded(picture(), "JPEG", progressive=True)
    flooded = data[: data.index(b"\xff\xda") + 14] + part * (2**22 // len(part))
    assert refusal(flooded) is Code.BROKEN_IMAGE
    with suppress(ServiceError):
        decoded(flooded + b"\xff\xd9")


def test_a_thumbnail_or_a_video_is_no_further_scan() -> None:
    data = enlarged(encoded(picture(), "JPEG", exif=b"Exif\0\0" + encoded(picture(), "JPEG")), 12000, 9000)
    assert decoded(data + b"\xff\xda" * 90, USUAL, MAX_PIXELS).shape == (224, 224, 3)


PEAK = """
import json, resource, sys
import numpy
from models.manifest import Preprocessing
from server.errors import ServiceError
from server.images.decode import decode
how = Preprocessing(resize=232, crop=224, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
out = numpy.zeros((224, 224, 3), numpy.uint8)
peaks = []
for name in sys.argv[1:]:
    data = open(name, "rb").read()
    try:
        decode(data, how, [out], max_pixels=10**8)
    except ServiceError as error:
        assert error.code == "broken_image", error
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


def peak_bytes(data: bytes, folder: Path) -> int:
    """The peak memory that decoding adds to a process that has already decoded a small image."""
    small, large = folder / "small", folder / "large"
    small.write_bytes(encoded(picture(), "PNG"))
    large.write_bytes(data)
    done = subprocess.run([sys.executable, "-c", PEAK, small, large], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    return int(after - before) * 1024 - len(data)


WIDTH, HEIGHT = 3000, 2500
PIXELS = WIDTH * HEIGHT


def flat(mode: str) -> Image.Image:
    """An image that compresses to little."""
    return Image.new(mode, (WIDTH, HEIGHT))


KINDS = {
    "JPEG": lambda: encoded(flat("RGB"), "JPEG"),
    "progressive JPEG": lambda: encoded(flat("RGB"), "JPEG", progressive=True, subsampling=0),
    "CMYK JPEG": lambda: encoded(flat("CMYK"), "JPEG", progressive=True),
    "JPEG without end": lambda: encoded(flat("RGB"), "JPEG", progressive=True, subsampling=0)[:-2],
    "PNG": lambda: encoded(flat("RGBA"), "PNG"),
    "PNG of 16 bits": lambda: encoded(Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)), "PNG"),
    "TIFF of floats": lambda: encoded(flat("F"), "TIFF", compression="tiff_lzw"),
    "GIF": lambda: encoded(flat("P"), "GIF"),
    "HEIF": lambda: encoded(flat("RGB"), "HEIF", quality=10),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_pixel_takes_more_than_is_said(kind: str, tmp_path: Path) -> None:
    assert peak_bytes(KINDS[kind](), tmp_path) < PIXELS * PIXEL_BYTES


NOISES = """
import sys
import numpy
from models.manifest import Preprocessing
from server.errors import ServiceError
from server.images.decode import decode
how = Preprocessing(resize=32, crop=32, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
out = numpy.zeros((32, 32, 3), numpy.uint8)
data = sys.stdin.buffer.read()
for cut in range(20, len(data), 7):
    for damaged in (data[:cut], data[:cut] + bytes(9) + data[cut + 9 :], data[:cut] + b"\\xff" * 9 + data[cut + 9 :]):
        try:
            decode(damaged, how, [out], max_pixels=10**6)
        except ServiceError:
            pass
"""


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "group4"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {}),
        ("JPEG", {}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("AVIF", {}),
        ("HEIF", {}),
    ],
)
def test_no_library_writes_lines_of_its_own(format_name: str, options: dict[str, str]) -> None:
    image = picture().convert("1") if options.get("compression") == "group4" else picture()
    data = encoded(image, format_name, **options)
    done = subprocess.run([sys.executable, "-c", NOISES], input=data, capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout == b""
