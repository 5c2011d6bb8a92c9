"""Damage outside the pixels does not change the picture; a file that lacks pixels is refused."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from server.errors import Code, ServiceError
from tests.server.images.pictures import decoded, difference, encoded, picture, png, preprocessing, refusal, with_alpha

SIDE = 128
WHOLE = preprocessing(SIDE, SIDE)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE // 4, SIDE // 4, 3), np.uint8)).resize(
    (SIDE, SIDE)
)
"""A photo in which no two rows are alike."""


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def detail(data: bytes) -> str:
    with pytest.raises(ServiceError) as caught:
        decoded(data, WHOLE)
    assert caught.value.code is Code.BROKEN_IMAGE
    return str(caught.value)


def percent(data: bytes) -> int:
    found = re.search(r"after about (\d+) % of its rows", detail(data))
    assert found is not None, detail(data)
    return int(found[1])


# JPEG


def segment(kind: int, body: bytes) -> bytes:
    return bytes((0xFF, kind)) + struct.pack(">H", 2 + len(body)) + body


SEGMENTS = {
    **{f"APP{kind & 15} empty": segment(kind, b"") for kind in range(0xE0, 0xF0)},
    **{f"APP{kind & 15} of junk": segment(kind, b"\xff\xd8\0\xff" * 9) for kind in range(0xE0, 0xF0)},
    "JFIF without version": segment(0xE0, b"JFIF\0"),
    "JFIF with half a version": segment(0xE0, b"JFIF\0\1"),
    "JFIF without density": segment(0xE0, b"JFIF\0\1\2\1\0"),
    "JFXX": segment(0xE0, b"JFXX\0"),
    "Exif of junk": segment(0xE1, b"Exif\0\0junk"),
    "Exif of endless tags": segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
    "ICC without number": segment(0xE2, b"ICC_PROFILE\0"),
    "ICC of too few parts": segment(0xE2, b"ICC_PROFILE\0\1\3junk"),
    "ICC without length": segment(0xE2, b"ICC_PROFILE\0\1"),
    "FlashPix": segment(0xE2, b"FPXR\0"),
    "MPF of junk": segment(0xE2, b"MPF\0junk"),
    "MPF without offset": segment(0xE2, b"MPF\0MM\0*"),
    "MPF of endless tags": segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff\xb0\1"),
    "Photoshop with a code": segment(0xED, b"Photoshop 3.0\x008BIM\4\4"),
    "Photoshop with half a code": segment(0xED, b"Photoshop 3.0\x008BIM\4"),
    "Photoshop without resolution": segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\2\0\1"),
    "Photoshop beyond its end": segment(0xED, b"Photoshop 3.0\x008BIM\4\4\xff\0\xff\xff\xff\xff"),
    "Adobe without version": segment(0xEE, b"Adobe"),
    "Adobe with half a version": segment(0xEE, b"Adobe\0"),
    "Adobe without transform": segment(0xEE, b"Adobe\0d\0\0\0\0"),
    "comment": segment(0xFE, b"\xff\xda"),
    "between segments": b"\0junk\xff\0",
    "fill": b"\xff\xff\xff",
}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("name", SEGMENTS)
def test_metadata_of_a_jpeg_do_not_decide_whether_it_is_read(name: str, *, progressive: bool) -> None:
    data = encoded(PHOTO, "JPEG", progressive=progressive)
    start = 4 + int.from_bytes(data[4:6], "big")  # after JFIF's segment
    expected = decoded(data, WHOLE)
    assert np.array_equal(decoded(data[:start] + SEGMENTS[name] + data[start:], WHOLE), expected)
    if SEGMENTS[name].startswith(b"\xff"):
        assert np.array_equal(decoded(data[:2] + SEGMENTS[name] + data[2:], WHOLE), expected)
        assert np.array_equal(decoded(data[:2] + SEGMENTS[name] + data[start:], WHOLE), expected)


@pytest.mark.parametrize("name", ["JFIF with half a version", "Photoshop with a code", "Adobe with half a version"])
def test_a_damaged_segment_leaves_orientation_and_colours_as_they_are(name: str) -> None:
    cmyk = encoded(PHOTO.convert("CMYK"), "JPEG", exif=exif(6))
    assert b"Adobe" in cmyk
    at = cmyk.index(b"\xff\xdb")  # after the segment that counts
    assert np.array_equal(decoded(cmyk[:at] + SEGMENTS[name] + cmyk[at:], WHOLE), decoded(cmyk, WHOLE))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("end", [b"", b"\xff", b"\0" * 100], ids=["none", "half", "zeros"])
def test_a_jpeg_that_lacks_nothing_but_its_end_is_read(options: dict[str, int], mode: str, end: bytes) -> None:
    data = encoded(PHOTO.convert(mode), "JPEG", exif=thumbnail(), **options)
    assert data.endswith(b"\xff\xd9")
    assert np.array_equal(decoded(data[:-2] + end, WHOLE), decoded(data, WHOLE))


def thumbnail() -> bytes:
    """EXIF data that contain a JPEG, with its own end marker."""
    return b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + encoded(picture(), "JPEG")


def test_a_photo_that_is_halved_while_it_is_decoded_may_lack_its_end() -> None:
    data = encoded(picture(1000, 800), "JPEG")
    assert np.array_equal(decoded(data[:-2]), decoded(data))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_jpeg_that_lacks_pixels_says_how_many_rows_it_has(share: float) -> None:
    data = encoded(PHOTO, "JPEG", subsampling=0)
    start = data.index(b"\xff\xda")
    assert abs(percent(data[: start + int(share * (len(data) - start))]) - 100 * share) < 12


@pytest.mark.parametrize("end", [bytes(5000), bytes(5000) + b"\xff\xd9"], ids=["zeros", "zeros and an end"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 3}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_zeros_do_not_stand_in_for_pixels_of_a_jpeg(mode: str, options: dict[str, int], end: bytes) -> None:
    data = encoded(PHOTO.convert(mode), "JPEG", **options)
    start = data.index(b"\xff\xda")
    part = data[: start + int(0.6 * (len(data) - start))]
    assert abs(percent(part + end) - percent(part)) <= 8


@pytest.mark.parametrize("end", [b"", b"\xff\xd9", bytes(100), bytes(100) + b"\xff\xd9", b"\xff\xd9" + bytes(100)])
@pytest.mark.parametrize("colour", ["white", "black", (128, 128, 128), (10, 200, 30)])
@pytest.mark.parametrize("optimize", [False, True])
def test_a_plain_part_at_the_end_of_a_jpeg_is_no_want_of_pixels(colour: str, end: bytes, *, optimize: bool) -> None:
    """Blocks of one colour may be nothing but zeros."""
    image = Image.new("RGB", (SIDE, SIDE), colour)
    image.paste(PHOTO.crop((0, 0, SIDE, 16)))
    data = encoded(image, "JPEG", optimize=optimize)
    assert np.array_equal(decoded(data[:-2] + end, WHOLE), decoded(data, WHOLE))
    whole = np.asarray(image)[32:]
    assert difference(decoded(data, WHOLE)[32:], whole) <= 1


def test_the_last_block_of_a_jpeg_counts() -> None:
    data = encoded(PHOTO, "JPEG", subsampling=0)
    assert percent(data[:-12]) == 93  # one of its 16 rows of blocks is not there in full


def test_a_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    data = encoded(PHOTO, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    for cut in (data[:last], data[: last + 40], data[:-20]):
        assert "progressive JPEG image ends before its last scan" in detail(cut)


def test_a_damaged_segment_and_no_end_at_one_time_are_no_matter() -> None:
    data = encoded(PHOTO, "JPEG")
    damaged = data[:2] + SEGMENTS["JFIF with half a version"] + data[2:-2]
    assert np.array_equal(decoded(damaged, WHOLE), decoded(data, WHOLE))


# PNG

ANCILLARY = (
    *(b"acTL", b"bKGD", b"cHRM", b"cICP", b"eXIf", b"fcTL", b"gAMA", b"hIST", b"iCCP", b"iTXt", b"mDCV", b"pHYs"),
    *(b"sBIT", b"sPLT", b"sRGB", b"tEXt", b"tIME", b"zTXt", b"abCd"),
)


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    right = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", right)


@pytest.mark.parametrize("kind", ANCILLARY)
@pytest.mark.parametrize("image", [PHOTO, PHOTO.quantize(200), with_alpha(PHOTO)], ids=["RGB", "P", "RGBA"])
def test_metadata_of_a_png_do_not_decide_whether_it_is_read(kind: bytes, image: Image.Image) -> None:
    data = encoded(image, "PNG")
    expected = decoded(data, WHOLE)
    pixels = data.index(b"IDAT") - 4
    for body in (b"", b"\0", b"\0\1", b"k\0", b"k\0\1", b"k\0\0\0\0", bytes(26), b"\xff" * 40):
        for damaged in (chunk(kind, body), chunk(kind, body, checksum=7)):
            for at in (33, pixels, len(data) - 12):
                assert np.array_equal(decoded(data[:at] + damaged + data[at:], WHOLE), expected), (body, at)


def test_a_damaged_transparent_colour_is_ignored_as_browsers_do() -> None:
    red = png(8, 8, 8, 2, (b"\0" + b"\xff\0\0" * 8) * 8)
    for damaged in (chunk(b"tRNS", b"\0\xff"), chunk(b"tRNS", b"\0\xff\0\0\0\0", checksum=7)):
        assert difference(decoded(red[:33] + damaged + red[33:]), (255, 0, 0)) == 0
    whole = chunk(b"tRNS", b"\0\xff\0\0\0\0")
    broken = chunk(b"gAMA", b"")
    assert difference(decoded(red[:33] + whole + red[33:]), (255, 255, 255)) == 0
    assert difference(decoded(red[:33] + broken + whole + red[33:]), (255, 255, 255)) == 0


def test_a_palette_that_true_colour_suggests_does_not_matter() -> None:
    data = encoded(PHOTO, "PNG")
    assert np.array_equal(decoded(data[:33] + chunk(b"PLTE", b"\0", 7) + data[33:], WHOLE), decoded(data, WHOLE))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_damaged_chunk_leaves_the_orientation_as_it_is(orientation: int) -> None:
    data = encoded(PHOTO, "PNG", exif=exif(orientation))
    assert np.array_equal(decoded(data[:33] + chunk(b"pHYs", b"", 7) + data[33:], WHOLE), decoded(data, WHOLE))


@pytest.mark.parametrize("lost", [1, 4, 8, 11, 12])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "I;16"])
def test_a_png_that_lacks_nothing_but_its_end_is_read(lost: int, mode: str) -> None:
    image = (
        Image.fromarray(np.asarray(PHOTO.convert("L")).astype("<u2") * 257) if mode == "I;16" else PHOTO.convert(mode)
    )
    data = encoded(image, "PNG")
    assert np.array_equal(decoded(data[:-lost], WHOLE), decoded(data, WHOLE))


@pytest.mark.parametrize("lost", range(1, 9))
def test_a_png_that_lacks_its_pixels_checksum_is_read(lost: int) -> None:
    """Up to eight bytes: the checksum of its chunk, and zlib's before it."""
    data = encoded(PHOTO, "PNG")
    assert np.array_equal(decoded(data[: -12 - lost], WHOLE), decoded(data, WHOLE))


def test_a_wrong_checksum_of_all_pixels_is_no_matter() -> None:
    data = bytearray(encoded(PHOTO, "PNG"))
    for at in (-17, -20):
        data[at] ^= 1
        assert np.array_equal(decoded(bytes(data), WHOLE), decoded(encoded(PHOTO, "PNG"), WHOLE))


@pytest.mark.parametrize("zeros", [0, 5000])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_png_that_lacks_pixels_says_how_many_rows_it_has(share: float, zeros: int) -> None:
    data = encoded(PHOTO, "PNG")
    assert abs(percent(data[: int(share * len(data))] + bytes(zeros)) - 100 * share) < 15


@pytest.mark.parametrize("lost", [0, 8, 12, 20])
def test_zeros_behind_a_whole_png_are_no_matter(lost: int) -> None:
    data = encoded(PHOTO, "PNG")
    assert np.array_equal(decoded(data[: len(data) - lost] + bytes(5000), WHOLE), decoded(data, WHOLE))


def test_critical_chunks_are_trusted_only_whole() -> None:
    data = encoded(PHOTO, "PNG")
    assert refusal(data[:29] + b"\0\0\0\0" + data[33:]) is Code.BROKEN_IMAGE  # the header's checksum
    palette = encoded(PHOTO.quantize(200), "PNG")
    at = palette.index(b"PLTE") + 4 + 600
    assert refusal(palette[:at] + b"\0\0\0\0" + palette[at + 4 :]) is Code.BROKEN_IMAGE


# WebP, GIF, BMP, TIFF


@pytest.mark.parametrize("lossless", [False, True])
def test_metadata_of_a_webp_do_not_decide_whether_it_is_read(*, lossless: bool) -> None:
    data = encoded(PHOTO, "WEBP", lossless=lossless, exif=exif(6), icc_profile=bytes(300), xmp=b"<x/>" * 9)
    expected = decoded(data, WHOLE)
    for cut in (data[:-1], data[:-10], data[: data.index(b"XMP ") + 8], data[: data.index(b"XMP ")]):
        assert np.array_equal(decoded(cut, WHOLE), expected), len(cut)
    for size in (0, 12, len(data) + 1000):
        assert np.array_equal(decoded(data[:4] + struct.pack("<I", size) + data[8:], WHOLE), expected), size
    assert np.array_equal(decoded(data.replace(b"ICCP", b"ICCQ"), WHOLE), expected)


def test_an_animated_webp_that_lacks_later_frames_is_read() -> None:
    data = encoded(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(90)])
    second = data.rindex(b"ANMF")
    assert np.array_equal(decoded(data[: second + 100], WHOLE), decoded(data, WHOLE))
    assert refusal(data[: data.index(b"ANMF") + 100]) is Code.BROKEN_IMAGE


def test_a_gif_that_lacks_nothing_but_its_end_is_read() -> None:
    data = encoded(PHOTO.quantize(200), "GIF")
    assert data.endswith(b"\0;")
    for lost in (1, 2):
        assert np.array_equal(decoded(data[:-lost], WHOLE), decoded(data, WHOLE))


@pytest.mark.parametrize(
    "extension",
    [
        b"!\xfe\0",
        b"!\xff\0",
        b"!\xff\x0bNETSCAPE2.0\1\1\0",
        b"!\xff\3abc\0",
        b"!\x01\0",
        b"!\xf9\4\0\0\0\0\0",
        b"!\xf9\1\0\0",
        b"!\xf9\0",
    ],
)
def test_extensions_of_a_gif_do_not_decide_whether_it_is_read(extension: bytes) -> None:
    data = encoded(PHOTO.quantize(256), "GIF")
    at = 13 + 768
    assert data[at : at + 1] in b"!,"
    assert np.array_equal(decoded(data[:at] + extension + data[at:], WHOLE), decoded(data, WHOLE))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_bmp_and_tiff_that_lack_pixels_say_how_many_rows_they_have(share: float) -> None:
    bmp = encoded(PHOTO, "BMP")
    assert abs(percent(bmp[: int(share * len(bmp))]) - 100 * share) <= 1
    tiff = encoded(PHOTO, "TIFF")  # the directory comes first
    assert abs(percent(tiff[: int(share * len(tiff))]) - 100 * share) <= 1


@pytest.mark.parametrize("format_name", ["WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_what_tells_its_length_says_how_much_of_it_there_is(format_name: str, share: float) -> None:
    data = encoded(PHOTO, format_name)
    assert f"ends after about {int(100 * share)} % of its bytes; send all of it" in detail(
        data[: int(share * len(data)) + 1]
    )


def test_metadata_of_a_tiff_do_not_decide_whether_it_is_read() -> None:
    texts = {270: "description", 305: "software", 33432: "who"}
    tags = {**texts, 34675: bytes(300), 700: b"<x/>", 34377: bytes(90), 282: 300.0}
    data = encoded(PHOTO, "TIFF", tiffinfo=tags, compression="tiff_lzw")
    expected = decoded(data, WHOLE)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    seen = 0
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, _, values = struct.unpack_from("<HHI", data, entry)
        if tag in tags:
            seen += 1
            damages = ((99, values, 8), (2, 2**31, 8), (2, values, 2**32 - 9), (5, 1, 2**31), (13, 5, 7))
            for kind, number, value in damages:
                damaged = bytearray(data)
                struct.pack_into("<HII", damaged, entry + 2, kind, number, value)
                assert np.array_equal(decoded(bytes(damaged), WHOLE), expected), (tag, kind)
    assert seen == len(tags)


def test_a_tiff_whose_exif_cannot_be_found_is_read() -> None:
    data = encoded(PHOTO, "TIFF", tiffinfo={34665: 8, 34853: 9})
    lost = data.replace(struct.pack("<HHII", 34665, 4, 1, 8), struct.pack("<HHII", 34665, 4, 1, 2**32 - 1))
    assert np.array_equal(decoded(lost, WHOLE), decoded(encoded(PHOTO, "TIFF"), WHOLE))


def test_what_is_appended_is_no_matter() -> None:
    for format_name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"):
        data = encoded(PHOTO.quantize(200) if format_name == "GIF" else PHOTO, format_name)
        assert np.array_equal(decoded(data + b"junk" * 20, WHOLE), decoded(data, WHOLE)), format_name
    assert Image.open(io.BytesIO(data)).format == "HEIF"
