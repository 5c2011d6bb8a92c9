"""What decode() promises about every upload, good or hostile."""

import gc
import io
import resource
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from models.manifest import Preprocessing
from server.errors import Code, ServiceError
from server.images.decode import DRAFT_MARGIN, FORMATS, decode
from server.images.preprocess import resample, windows
from tests.server.images.pictures import (
    CASES,
    LOSSY,
    MAX_PIXELS,
    OPAQUE,
    SAMPLES,
    SIDE,
    TRANSPARENT,
    TURNED_FROM_UPRIGHT,
    WIDE,
    Pixels,
    as_stored,
    damaged,
    decoded,
    difference,
    encoded,
    on_white,
    picture,
    png,
    preprocessing,
    refusal,
    tiff,
)

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


# What a good image becomes


@pytest.mark.parametrize(("format_name", "mode"), CASES)
def test_every_format_and_mode_gives_its_colours(format_name: str, mode: str) -> None:
    if mode in TRANSPARENT:
        expected = on_white(TRANSPARENT[mode])
    elif mode in WIDE:
        expected = np.asarray(picture().convert("L").convert("RGB"))
    else:
        expected = np.asarray(OPAQUE[mode].convert("RGB"))
    # 10 levels: the cost of half the chroma resolution at the edges of this gradient; 1: rounding of the composite
    tolerance = 10 if format_name in LOSSY else int(mode in TRANSPARENT)
    assert difference(decoded(SAMPLES[f"{format_name} {mode}"]), expected) <= tolerance


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "TIFF"])
def test_image_of_the_right_size_passes_bit_for_bit(format_name: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for interpolation in ("bilinear", "bicubic"):
        assert difference(decoded(encoded(noise, format_name), preprocessing(40, 40, interpolation)), noise) == 0
        cropped = decoded(encoded(noise, format_name), preprocessing(40, 32, interpolation))
        assert np.array_equal(cropped, np.asarray(noise)[4:36, 4:36])


def test_adobe_cmyk_jpeg_is_not_a_negative() -> None:
    """Adobe stores CMYK inverted; Pillow writes it that way, with the marker."""
    assert b"Adobe" in SAMPLES["JPEG CMYK"]
    red = encoded(Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)), "JPEG")
    assert difference(decoded(red), (255, 0, 0)) <= 3


def test_adobe_ycck_jpeg_gives_the_cmyk_colours() -> None:
    """Transform byte 2 of the Adobe marker: the first three channels are YCbCr of inverted CMY."""
    cmyk = encoded(Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)), "JPEG")
    flag = cmyk.index(b"Adobe") + 11
    assert cmyk[flag] == 0
    # The stored bytes (255, 0, 0) are now Y = 255, Cb = Cr = 0; JFIF's formula makes them cyan, magenta, yellow inks of
    # (76, 255, 28).
    assert difference(decoded(cmyk[:flag] + b"\2" + cmyk[flag + 1 :]), (255 - 76, 0, 255 - 28)) <= 4


@pytest.mark.parametrize(
    ("depth", "colour", "pixel", "transparent", "expected"),
    [
        (8, 2, b"\x12\x34\x56", b"\0\x12\0\x34\0\x56", (255, 255, 255)),
        (8, 2, b"\x12\x34\x56", b"\0\x12\0\x34\0\x57", (0x12, 0x34, 0x56)),
        (8, 0, b"\x40", b"\0\x40", (255, 255, 255)),
        (16, 2, b"\x12\xff\x56\xff\x9a\xff", None, (0x12, 0x56, 0x9A)),
        (16, 6, b"\x12\0\x56\0\x9a\0\xff\xff", None, (0x12, 0x56, 0x9A)),
        (16, 4, b"\x12\0\0\0", None, (255, 255, 255)),
        (16, 0, b"\xff\xff", None, (255, 255, 255)),
        (16, 0, b"\x01\xff", None, (1, 1, 1)),
    ],
)
def test_png_depth_and_transparent_colour(
    depth: int, colour: int, pixel: bytes, transparent: bytes | None, expected: tuple[int, int, int]
) -> None:
    chunks = [(b"tRNS", transparent)] if transparent else []
    assert difference(decoded(png(8, 8, depth, colour, (b"\0" + pixel * 8) * 8, *chunks)), expected) == 0


def test_palette_transparency_shows_white() -> None:
    palette = Image.new("P", (SIDE, SIDE), 0)
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.paste(1, (0, 0, SIDE, SIDE // 2))
    for data in (
        encoded(palette, "GIF", transparency=1),
        encoded(palette, "PNG", transparency=1),
        encoded(palette, "PNG", transparency=b"\xff\0"),
    ):
        pixels = decoded(data)
        assert difference(pixels[0], (255, 255, 255)) == 0
        assert difference(pixels[-1], (200, 0, 0)) == 0


@pytest.mark.parametrize(
    ("bits", "photometric", "pixel", "expected"),
    [((8, 8), 1, b"\x40\x80", (191, 191, 191)), ((8, 8, 8, 8), 2, b"\x40\x20\x10\x80", (191, 159, 143))],
)
def test_premultiplied_tiff_shows_white(
    bits: tuple[int, ...], photometric: int, pixel: bytes, expected: tuple[int, int, int]
) -> None:
    """Premultiplied colour c over white is c + 255 - alpha."""
    assert difference(decoded(tiff(8, 8, bits, photometric, pixel * 64, extra=1)), expected) <= 1


def test_float_tiff_is_read_as_0_to_255_and_clipped() -> None:
    values = np.array([[-5.0, 0.0], [100.9, 1e9]], np.float32)
    pixels = decoded(encoded(Image.fromarray(values), "TIFF"), preprocessing(2, 2))
    assert pixels[..., 0].tolist() == [[0, 0], [100, 255]]


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_animation_shows_its_first_frame(format_name: str) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert difference(decoded(data), (255, 0, 0)) <= 4  # 4: lossy formats


@pytest.mark.parametrize("orientation", TURNED_FROM_UPRIGHT)
@pytest.mark.parametrize("size", [(45, 32), (400, 301)])  # 301 is large enough for the JPEG decoder to downscale
@pytest.mark.parametrize(
    ("format_name", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("AVIF", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_exif_orientation_gives_the_upright_picture(
    format_name: str, options: dict[str, str], size: tuple[int, int], orientation: int
) -> None:
    upright = picture(*size)
    stored, exif = as_stored(upright, orientation)
    tolerance = 10 if format_name in LOSSY else 1
    assert (
        difference(decoded(encoded(stored, format_name, exif=exif, **options)), decoded(encoded(upright, "PNG")))
        <= tolerance
    )


@pytest.mark.parametrize(
    ("kind", "count", "value"), [(4, 1, b"\0\0\0\6"), (8, 1, b"\0\6\0\0"), (2, 1, b"6\0\0\0"), (3, 2, b"\0\6\0\6")]
)
def test_an_orientation_of_another_type_does_not_count_as_in_browsers(kind: int, count: int, value: bytes) -> None:
    said = b"Exif\0\0MM\0*" + struct.pack(">LHHHL", 8, 1, ExifTags.Base.Orientation, kind, count) + value + bytes(4)
    for format_name in ("JPEG", "PNG", "WEBP"):
        upright = encoded(picture(48, 32), format_name)
        assert np.array_equal(decoded(encoded(picture(48, 32), format_name, exif=said)), decoded(upright))


@pytest.mark.parametrize("orientation", TURNED_FROM_UPRIGHT)
def test_turned_picture_is_cropped_at_the_same_pixels(orientation: int) -> None:
    """(45 - 32) / 2 rounds to 6 from the upright left: 7 from the stored left of a mirrored picture."""
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 45, 3), np.uint8))
    stored, exif = as_stored(upright, orientation)
    assert np.array_equal(decoded(encoded(stored, "PNG", exif=exif)), np.asarray(upright)[:, 6:38])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.filterwarnings("ignore:Tag data larger than file:UserWarning")
@pytest.mark.filterwarnings("ignore:Metadata Warning:UserWarning")
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"nonsense",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\xff\xff\xff\xff\0\0\0\0",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",
    ],
)
def test_malformed_exif_is_ignored(format_name: str, exif: bytes) -> None:
    data = encoded(picture(), format_name, exif=b"Exif\0\0" + exif)
    assert np.array_equal(decoded(data), decoded(encoded(picture(), format_name)))


def test_pillows_warnings_are_silent_in_a_server() -> None:
    """Tested in another process, since pytest replaces the filters of warnings."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    script = (
        "import sys, numpy; from models.manifest import Preprocessing; from server.images.decode import decode\n"
        f"how = Preprocessing.model_validate_json({preprocessing().model_dump_json()!r})\n"
        "decode(sys.stdin.buffer.read(), how, [numpy.zeros((32, 32, 3), numpy.uint8)], max_pixels=10**6)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=encoded(picture(), "JPEG", exif=exif), capture_output=True, check=True
    )
    assert done.stderr == b""


# Resize and crop


def torchvision_crops(image: Image.Image, how: Preprocessing) -> list[Pixels]:
    """torchvision's Resize and CenterCrop on a PIL image, written plainly, in both orders of the two passes.

    Pillow takes the cheaper pass first, which may be another for the crop than for the whole image. Each pass rounds
    and clips to 8 bits: under bicubic the orders differ by several levels at sharp edges.
    """
    width, height = image.size
    if width <= height:
        resized = how.resize, int(how.resize * height / width)
    else:
        resized = int(how.resize * width / height), how.resize
    rows, columns = how.crop
    left, top = round((resized[0] - columns) / 2.0), round((resized[1] - rows) / 2.0)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    return [
        np.asarray(
            image.resize(first, filters[how.interpolation])
            .resize(resized, filters[how.interpolation])
            .crop((left, top, left + columns, top + rows))
        )
        for first in ((resized[0], height), (width, resized[1]))
    ]


def difference_to_torchvision(pixels: Pixels, image: Image.Image, how: Preprocessing) -> int:
    return min(difference(pixels, crop) for crop in torchvision_crops(image, how))


@pytest.mark.parametrize("library", ["cykooz_resizer", "PIL"])
@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    resize=st.integers(1, 96),
    margin=st.integers(0, 40),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
@example(width=1, height=5000, resize=48, margin=8, interpolation="bicubic")
@example(width=5000, height=1, resize=48, margin=8, interpolation="bilinear")
@example(width=5000, height=3, resize=64, margin=7, interpolation="bicubic")
@example(width=500, height=375, resize=256, margin=32, interpolation="bicubic")
def test_resampling_the_box_equals_resize_then_crop(
    library: str, width: int, height: int, resize: int, margin: int, interpolation: str
) -> None:
    """Within 2 levels: the box's corners are single-precision floats, and each of two passes rounds to 8 bits."""
    image = Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8))
    how = preprocessing(resize, max(1, resize - margin), interpolation)
    (window,) = windows(image.size, how)
    with mock.patch("server.images.preprocess.simd", None if library == "PIL" else pytest.importorskip(library)):
        pixels = np.asarray(resample(image, window.box, window.size, how.interpolation))
    assert difference_to_torchvision(pixels, image, how) <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_box_up_to_the_last_pixel_is_never_taken_to_be_outside(interpolation: str) -> None:
    """Not even because its corners are rounded: the photo would be called broken."""
    how = preprocessing(97, 97, interpolation)
    for side in range(1, 400):
        image = Image.new("RGB", (side, 2 * side + 1), "white")
        for window in windows(image.size, how, 1, 10):
            pixels = np.asarray(resample(image, window.box, window.size, how.interpolation))
            assert difference(pixels, (255, 255, 255)) == 0, (side, window)


def test_extreme_aspect_ratio_needs_no_room_for_the_resized_image() -> None:
    """Resized whole, this one would be 256,000,000 x 256."""
    pixels = decoded(png(1_000_000, 1, 8, 0, b"\0" + b"\x7b" * 1_000_000), preprocessing(256, 224), 64_000_000)
    assert difference(pixels, (123, 123, 123)) == 0


def test_downscaling_jpeg_decoder_keeps_the_picture() -> None:
    photo = picture(1001, 777)
    how = preprocessing(48, 32)
    # 4 levels: quality 95 on a smooth gradient; an offset of one drafted pixel would be 2 levels more
    assert difference_to_torchvision(decoded(encoded(photo, "JPEG"), how), photo, how) <= 4


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no sample photos at {SHARED}")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_real_photos_match_torchvisions_transform(interpolation: str) -> None:
    how = preprocessing(256, 224, interpolation)
    for path in sorted((SHARED / "imagenet-sample").iterdir())[::10]:
        with Image.open(path) as photo:
            if min(photo.size) < DRAFT_MARGIN * how.resize:  # else the decoder downscales it
                pixels = decoded(path.read_bytes(), how)
                assert difference_to_torchvision(pixels, photo.convert("RGB"), how) <= 2, path.name
                away = [np.abs(pixels.astype(int) - crop) for crop in torchvision_crops(photo.convert("RGB"), how)]
                assert min((each > 1).mean() for each in away) < 1e-4, path.name  # 2 if both passes round differently


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no CIFAR images at {SHARED}")
def test_cifar_images_pass_bit_for_bit() -> None:
    for path in sorted((SHARED / "cifar10-test").rglob("*.jp*g"))[::100]:
        assert difference(decoded(path.read_bytes()), Image.open(path).convert("RGB")) == 0, path.name


# What is refused


def test_empty_body_is_refused() -> None:
    assert refusal(b"") is Code.EMPTY_BODY


@pytest.mark.parametrize("format_name", ["ICO", "PPM", "PCX", "EPS", "TGA", "JPEG2000"])
def test_other_image_formats_are_refused_by_name(format_name: str) -> None:
    assert refusal(encoded(picture(), format_name)) is Code.NOT_AN_IMAGE


@pytest.mark.parametrize(
    "data", [b"hello", b"\0", b"%PDF-1.7", b"<svg/>", b"8BPS\0\1" + bytes(60), b"\0\0\0\x18ftypcrx " + bytes(60)]
)
def test_what_is_no_accepted_image_is_told_the_formats(data: bytes) -> None:
    with pytest.raises(ServiceError, match=", ".join(FORMATS)) as caught:
        decoded(data)
    assert caught.value.code is Code.NOT_AN_IMAGE


@pytest.mark.parametrize("name", SAMPLES)
def test_truncated_image_is_broken(name: str) -> None:
    data = SAMPLES[name]
    # the first half of an animation may contain its whole first frame
    for share in (0.2,) if name.startswith(("animated", "APNG")) else (0.2, 0.4, 0.6, 0.8):
        assert refusal(data[: max(16, int(len(data) * share))]) is Code.BROKEN_IMAGE, share


@pytest.mark.parametrize(
    "data",
    [
        png(0, 5, 8, 2, b""),
        png(5, 0, 8, 2, b""),
        tiff(0, 5, (8, 8, 8), 2, bytes(15)),
        b"GIF89a" + bytes(7) + b";",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 0, 0, 1, 24, 0, 0, 0, 0, 0, 0),
    ],
    ids=["PNG width", "PNG height", "TIFF", "GIF", "BMP"],
)
def test_image_without_pixels_is_broken(data: bytes) -> None:
    assert refusal(data) is Code.BROKEN_IMAGE


JPEG_65535 = (
    b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\1\x11\0\2\x11\0\3\x11\0\xff\xda\0\x0c\3\1\0\2\0\3\0\0\x3f\0"
)


@pytest.mark.parametrize(
    "data",
    [
        png(60_000, 60_000, 8, 2, b""),
        png(10_000, 10_000, 8, 2, b""),  # where Pillow warns
        png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        tiff(2**32 - 1, 2**32 - 1, (8, 8, 8), 2, bytes(8)),
        tiff(8, 8, (8, 8, 8), 2, zlib.compress(bytes(4096 * 4096 * 3)), tile=4096, compression=8),
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + bytes(9) + b"\2\2\x44\1\0;",
        b"GIF89a" + struct.pack("<HH3x", 1, 1) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\2\x44\1\0;",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
        encoded(Image.new("L", (16383, 100)), "WEBP", lossless=True),
        encoded(Image.new("L", (1100, 1000)), "AVIF", speed=10),
        JPEG_65535,
    ],
    ids=["PNG", "PNG 10^8", "PNG 2^31", "TIFF", "TIFF tile", "GIF", "GIF frame", "BMP", "WEBP", "AVIF", "JPEG"],
)
def test_too_many_pixels_is_seen_in_the_header(data: bytes) -> None:
    assert refusal(data) is Code.TOO_MANY_PIXELS


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read the memory in use from")
def test_gif_canvas_is_refused_before_it_is_allocated() -> None:
    """Disposal to background makes Pillow fill the frame when it opens the file: 4 GiB here, but 1 GiB are left."""
    control = b"!\xf9\4\x08\0\0\0\0"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\2\x44\1\0;"
    bomb = b"GIF89a" + struct.pack("<HH3x", 65535, 65535) + control + frame
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**30, hard))
    try:
        assert refusal(bomb) is Code.TOO_MANY_PIXELS
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_max_pixels_is_the_last_size_allowed() -> None:
    data = encoded(picture(100, 70), "PNG")
    decoded(data, max_pixels=7000)
    assert refusal(data, max_pixels=6999) is Code.TOO_MANY_PIXELS


@pytest.mark.parametrize("size", [(1, 50_001), (50_001, 1)])
def test_thin_image_counts_as_64_pixels_wide(size: tuple[int, int]) -> None:
    """Every row costs its pointer and padding."""
    data = encoded(Image.new("LA", size), "PNG")
    assert refusal(data, max_pixels=64 * 50_000) is Code.TOO_MANY_PIXELS
    assert decoded(data, max_pixels=64 * 50_001).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_compressed_text_bomb_is_broken(kind: bytes) -> None:
    bomb = (kind, b"k\0\0" + zlib.compress(bytes(20_000_000)))
    assert refusal(png(8, 8, 8, 2, bytes(200), bomb)) is Code.BROKEN_IMAGE


def test_many_text_chunks_are_broken() -> None:
    chunk = (b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000)))
    assert refusal(png(8, 8, 8, 2, bytes(200), *[chunk] * 70)) is Code.BROKEN_IMAGE


def test_more_pixel_data_than_the_header_says_is_not_kept() -> None:
    assert difference(decoded(png(8, 8, 8, 2, bytes(50_000_000))), (0, 0, 0)) == 0


def test_progressive_jpeg_of_endless_scans_is_broken() -> None:
    data = SAMPLES["progressive JPEG"]
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    decoded(data[:-2] + last_scan * 50 + data[-2:])
    assert refusal(data[:-2] + last_scan * 200 + data[-2:]) is Code.BROKEN_IMAGE


def baseline_scans(count: int, between: bytes = b"") -> bytes:
    """A baseline JPEG with many scans of its three components in turn, without data, which libjpeg tolerates."""
    data = SAMPLES["JPEG RGB"]
    scan = b"\xff\xda\0\x08\1%c\0\0\x3f\0"
    return data[: data.index(b"\xff\xda")] + b"".join(scan % (1 + i % 3) + between for i in range(count)) + b"\xff\xd9"


def test_baseline_jpeg_of_endless_scans_is_broken() -> None:
    decoded(baseline_scans(99))
    assert refusal(baseline_scans(101)) is Code.BROKEN_IMAGE
    end_in_a_comment = b"\xff\xfe\0\4\xff\xd9"
    assert refusal(baseline_scans(101, end_in_a_comment)) is Code.BROKEN_IMAGE


def test_what_looks_like_scans_behind_the_photo_is_no_matter() -> None:
    """Phones append a video."""
    photo = SAMPLES["JPEG with EXIF"]
    assert np.array_equal(decoded(photo + b"\xff\xda" * 1000), decoded(photo))


def flooded(name: str, at: int, part: bytes, count: int) -> bytes:
    return SAMPLES[name][:at] + part * count + SAMPLES[name][at:]


def jpeg_segment(kind: int, body: bytes) -> bytes:
    return b"\xff%c" % kind + struct.pack(">H", 2 + len(body)) + body


PNG_CHUNK = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
GIF_START = 13 + (3 << (SAMPLES["GIF L"][10] & 7) + 1)


@pytest.mark.parametrize(
    ("name", "at", "part", "harmless", "flood"),
    [
        ("JPEG RGB", 2, jpeg_segment(0xE1, b"Exif\0\0x"), 100, 1000),
        ("JPEG RGB", 2, jpeg_segment(0xE5, b""), 100, 1000),
        ("JPEG RGB", 2, jpeg_segment(0xED, b"Photoshop 3.0\0" + bytes(60_000)), 10, 20),
        ("JPEG RGB", 2, b"\xff", 1000, 100_000),
        ("JPEG RGB", 2, b"\xff\xd0", 1000, 100_000),
        ("PNG RGB", 33, PNG_CHUNK, 1000, 50_000),
        ("GIF L", GIF_START, b"!\x01\1x\0", 1000, 50_000),
        ("GIF L", GIF_START, b"x", 1000, 100_000),
    ],
    ids=["Exif", "APP5", "Photoshop", "fill", "restarts", "PNG chunks", "GIF extensions", "GIF junk"],
)
def test_metadata_flood_is_broken(name: str, at: int, part: bytes, harmless: int, flood: int) -> None:
    assert np.array_equal(decoded(flooded(name, at, part, harmless)), decoded(SAMPLES[name]))
    with pytest.raises(ServiceError, match="; send one of at most ") as caught:
        decoded(flooded(name, at, part, flood))
    assert caught.value.code is Code.BROKEN_IMAGE


def test_long_gif_comment_is_broken() -> None:
    comment = b"!\xfe" + b"\1x" * 100_000 + b"\0"
    assert refusal(flooded("GIF L", GIF_START, comment, 1)) is Code.BROKEN_IMAGE


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("tags", "values"), [(1, 50_001), (1001, 1)])
def test_tiff_of_endless_tags_or_strips_is_broken(tags: int, values: int, *, big: bool) -> None:
    if big:
        data = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, tags) + struct.pack("<HHQQ", 273, 4, values, 8) * tags
    else:
        data = struct.pack("<2sHLH", b"II", 42, 8, tags) + struct.pack("<HHLL", 273, 4, values, 8) * tags
    with pytest.raises(ServiceError, match="; send one of at most ") as caught:
        decoded(data + bytes(300_000))
    assert caught.value.code is Code.BROKEN_IMAGE


def with_avif_items(count: int) -> bytes:
    data = SAMPLES["AVIF RGB"]
    entries = b"".join(struct.pack(">I4sIHH4sx", 21, b"infe", 2 << 24, 100 + i, 0, b"Exif") for i in range(count))
    at = data.index(b"iinf") - 4
    size, kind, version, listed = struct.unpack_from(">I4sIH", data, at)
    data = (
        data[:at]
        + struct.pack(">I4sIH", size + len(entries), kind, version, listed + count)
        + data[at + 14 : at + size]
        + entries
        + data[at + size :]
    )
    meta = data.index(b"meta") - 4
    (size,) = struct.unpack_from(">I", data, meta)
    return data[:meta] + struct.pack(">I", size + len(entries)) + data[meta + 4 :]


def test_avif_of_endless_items_or_boxes_is_broken() -> None:
    free = struct.pack(">I4s", 8, b"free")
    decoded(SAMPLES["AVIF RGB"] + free * 100)
    for data in (with_avif_items(10_000), SAMPLES["AVIF RGB"] + free * 2000):
        with pytest.raises(ServiceError, match="; send one of at most ") as caught:
            decoded(data)
        assert caught.value.code is Code.BROKEN_IMAGE


@pytest.mark.parametrize("compression", [1, 2])
def test_run_length_bmp_is_refused_with_the_remedy(compression: int) -> None:
    """Pillow's decoder for it is written in Python."""
    data = bytearray(SAMPLES["BMP P"])
    data[30] = compression
    with pytest.raises(ServiceError, match="send the BMP uncompressed") as caught:
        decoded(bytes(data))
    assert caught.value.code is Code.NOT_AN_IMAGE


@settings(max_examples=1500, deadline=None)
@given(
    data=st.one_of(
        damaged(),
        st.sampled_from([JPEG_65535[:3], b"BM", b"II*\0", b"RIFF"]).flatmap(
            lambda magic: st.binary(max_size=200).map(lambda rest: magic + rest)
        ),
    )
)
def test_hostile_bytes_give_a_picture_or_a_refusal(data: bytes) -> None:
    out = np.full((SIDE, SIDE, 3), 77, np.uint8)
    try:
        decode(data, preprocessing(), [out], max_pixels=MAX_PIXELS)
    except ServiceError:
        assert np.all(out == 77)


# How it is called


@pytest.mark.parametrize("name", SAMPLES)
def test_no_image_is_kept_by_its_refusal(name: str) -> None:
    """Errors that refer to each other in a cycle would keep the image until the garbage collector runs."""
    data = SAMPLES[name]
    files = (data, data[: len(data) * 6 // 10], data[:20], data[:-2], data[:40] + b"\xff" * 8 + data[48:])
    for file in files:
        with suppress(ServiceError):
            decoded(file)
    gc.collect()
    gc.disable()
    try:
        for file in files:
            with suppress(ServiceError):
                decoded(file)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_memoryview_and_part_of_a_shared_buffer_will_do() -> None:
    slots = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    decode(memoryview(SAMPLES["PNG RGB"]), preprocessing(), [slots[1]], max_pixels=MAX_PIXELS)
    assert difference(slots[1], picture()) == 0
    assert not slots[0].any()
    assert not slots[2].any()


def test_threads_do_not_disturb_each_other() -> None:
    expected = {name: decoded(data) for name, data in SAMPLES.items()}
    names = sorted(SAMPLES) * 8
    with ThreadPoolExecutor(8) as pool:
        for name, pixels in zip(names, pool.map(lambda name: decoded(SAMPLES[name]), names), strict=True):
            assert np.array_equal(pixels, expected[name]), name


def test_no_file_is_left_open() -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("no /proc to count open files in")
    before = len(list(descriptors.iterdir()))
    for data in SAMPLES.values():
        decoded(data)
    assert len(list(descriptors.iterdir())) == before


@pytest.mark.parametrize("orientation", range(1, 9))
def test_ten_crops_are_those_of_the_upright_resized_picture(orientation: int) -> None:
    how = preprocessing(resize=40, crop=32, interpolation="bilinear")
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    stored = Image.fromarray(noise)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    encoded = io.BytesIO()
    stored.save(encoded, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(encoded))
    short, long = sorted(upright.size)
    size = (40, int(40 * long / short))
    resized = upright.resize(size if upright.width < upright.height else size[::-1], Image.Resampling.BILINEAR)
    outs = [np.zeros((32, 32, 3), np.uint8) for _ in range(10)]
    decode(encoded.getvalue(), how, outs, max_pixels=MAX_PIXELS)
    assert len({out.tobytes() for out in outs}) == 10
    for out, (left, top, mirrored) in zip(outs, how.crops(resized.size, 10), strict=True):
        window = np.asarray(resized.crop((left, top, left + 32, top + 32))).astype(int)
        assert (
            abs(out.astype(int) - (window[:, ::-1] if mirrored else window)).max() <= 2
        )  # noise, in another pass order
