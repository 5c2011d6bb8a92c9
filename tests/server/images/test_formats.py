"""Formats that are not decoded are called by their names, and never called damaged."""

import base64
import gzip
import struct
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL.PngImagePlugin import PngInfo

from server.errors import Code, ServiceError
from server.images.decode import FORMATS
from tests.server.images.pictures import Pixels, decoded, difference, encoded, picture, preprocessing

CASES = Path(__file__).resolve().parents[3].parent / "shared" / "cases" / "images"


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    body = major + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body + bytes(64)


def named(data: bytes) -> str:
    with pytest.raises(ServiceError) as caught:
        decoded(data)
    assert caught.value.code is Code.NOT_AN_IMAGE, caught.value
    return str(caught.value)


def jpeg(frame: int, bits: int, components: int) -> bytes:
    """The heads of a frame and a scan."""
    body = struct.pack(">BHHB", bits, 16, 16, components)
    body += b"".join(bytes((each, 0x11, 0)) for each in range(components))
    head = bytes((0xFF, frame)) + struct.pack(">H", len(body) + 2)
    return b"\xff\xd8" + head + body + b"\xff\xda\0\x08\1\0\0\0\0\0\xff\xd9"


def apples_png() -> bytes:
    """A PNG as Xcode packs it into applications: with a chunk before the header, and deflated without zlib's header."""
    data = encoded(picture(), "PNG")
    deflated = data[data.index(b"IDAT") + 4 :]
    raw = struct.pack(">I", len(deflated) - 22) + b"IDAT" + deflated[2:-20]
    return data[:8] + b"\0\0\0\4CgBI\x50\0\x20\2\x2b\xd5\xb3\x7f" + data[8:33] + raw + bytes(4) + data[-12:]


OTHERS = {
    "JPEG XL": [b"\xff\x0a" + bytes(20), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20)],
    "JPEG 2000": [encoded(picture(), "JPEG2000"), b"\xff\x4f\xff\x51" + bytes(20)],
    "JPEG XR": [b"II\xbc\1" + bytes(20)],
    "JPEG-LS": [b"\xff\xd8\xff\xf7" + bytes(20), b"\xff\xd8\xff\xe8\0\x06SPIF" + jpeg(0xF7, 8, 3)[2:]],
    "a Photoshop document": [b"8BPS\0\1" + bytes(60)],
    "SVG": [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?>\n<!-- from -->\n<svg width='1'>",
        b'\xef\xbb\xbf<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x">\n<svg>',
    ],
    "a PDF document": [b"%PDF-1.7"],
    "PostScript": [b"%!PS-Adobe-3.0 EPSF-3.0", encoded(picture(), "EPS")],
    "an HTML page": [b"<!DOCTYPE html><html>", b"\n<html lang='en'>"],
    "an icon": [encoded(picture(), "ICO"), encoded(picture(), "ICNS")],
    "Netpbm": [encoded(picture(), "PPM"), encoded(picture().convert("L"), "PPM"), b"P7\nWIDTH 1"],
    "a cursor": [b"\0\0\2\0\1\0  \0\0"],
    "Targa": [encoded(picture().convert(mode), "TGA") for mode in ("RGB", "L", "P", "RGBA")],
    "PCX": [encoded(picture(), "PCX")],
    "SGI": [encoded(picture(), "SGI")],
    "QOI": [encoded(picture(), "QOI")],
    "a DirectDraw surface": [encoded(picture(), "DDS")],
    "an OS/2 bitmap array": [b"BA" + bytes(12) + b"BM" + bytes(40)],
    "OpenEXR": [b"\x76\x2f\x31\x01" + bytes(20)],
    "Radiance HDR": [b"#?RADIANCE\n"],
    "DICOM": [bytes(128) + b"DICM"],
    "a zip archive (which /classify/batch takes if it comes alone)": [b"PK\3\4" + bytes(30)],
    "gzip (which a Content-Encoding field must name)": [gzip.compress(encoded(picture(), "BMP"))],
    "a NumPy array": [b"\x93NUMPY\1\0v\0{'descr'"],
    "a video": [ftyp(b"isom", b"mp42"), ftyp(b"qt  "), ftyp(b"M4V ")],
    "a Matroska or WebM video": [b"\x1a\x45\xdf\xa3" + bytes(9)],
    "an AVI video": [b"RIFF\0\0\0\0AVI LIST"],
    "a camera's raw file": [
        ftyp(b"crx ", b"isom"),
        b"FUJIFILMCCD-RAW 0201",
        b"IIU\0\x18\0\0\0",
        b"IIRO\x08\0\0\0",
        b"II\x1a\0\0\0HEAPCCDR",
    ],
    "PNG of Apple's own kind": [apples_png()],
    "lossless JPEG": [jpeg(0xC3, 10, 1)],
    "JPEG of 12 bits a sample": [jpeg(0xC1, 12, 1)],
    "JPEG of 2 components": [jpeg(0xC0, 8, 2)],
    "JPEG that states its height after its pixels": [jpeg(0xC0, 8, 1).replace(b"\0\x10\0\x10", b"\0\0\0\x10")],
    "hierarchical JPEG": [jpeg(0xC5, 8, 1)],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, files in OTHERS.items() for data in files])
def test_another_format_is_named(name: str, data: bytes) -> None:
    assert f"this is {name}" in named(data)
    assert ", ".join(FORMATS) in named(data)


@pytest.mark.parametrize(
    "flood", [b"<!---->" * 2000, b"<?xml?>" * 2000, b" " * 10_000, b"\xff\xd8\xff" + b"\xff" * 5_000_000 + b"\0"]
)
def test_what_is_long_and_nothing_is_refused_in_no_time(flood: bytes) -> None:
    """Regular expressions that backtrack would take for ever."""
    with pytest.raises(ServiceError):
        decoded(flood)


def bmp(bits: int, compression: int, *, header: int = 40, masks: bytes = b"") -> bytes:
    pixels = bytes(SIDE * SIDE * 4)
    info = struct.pack("<IiiHHIIiiII", header, SIDE, SIDE, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + header + len(masks)) + info.ljust(header, b"\0") + masks + pixels


SIDE = 16


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (bmp(2, 0), "pixel depth"),
        (bmp(64, 0), "pixel depth"),
        (bmp(0, 4), "pixel depth"),
        (bmp(24, 4), "compression"),
        (bmp(32, 6), "compression"),
        (bmp(16, 3, masks=struct.pack("<III", 0xF00, 0xF0, 0xF)), "bitfields layout"),
        (bmp(32, 3, masks=struct.pack("<III", 0x3FF, 0xFFC00, 0x3FF00000)), "bitfields layout"),
        (bmp(24, 0, header=48), "header type"),
    ],
)
def test_variants_of_bmp_are_named(data: bytes, name: str) -> None:
    found = named(data)
    assert "this is BMP of a variant" in found
    assert name in found


def test_usual_variants_of_bmp_give_their_colours() -> None:
    red16 = struct.pack("<H", 0xF800) * SIDE * SIDE
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    data = bmp(16, 3, masks=masks)
    assert difference(decoded(data[: 54 + 12] + red16, preprocessing(SIDE, SIDE)), (255, 0, 0)) == 0


@pytest.mark.parametrize(("bits", "colours"), [(8, 257), (8, 300), (8, 2**31), (4, 17), (1, 3)])
def test_a_bmp_may_say_that_it_has_more_colours_than_its_pixels_name(bits: int, colours: int) -> None:
    data = encoded(picture().quantize(2**bits), "BMP")
    said = data[:46] + struct.pack("<I", colours) + data[50:]
    assert np.array_equal(decoded(said), decoded(data))


# The cases from reports, if they are on this machine


def case(name: str) -> bytes:
    if not CASES.is_dir():
        pytest.skip(f"no cases at {CASES}")
    return (CASES / name).read_bytes()


def shown(name: str) -> Pixels:
    return decoded(case(name), preprocessing(64, 64))


@pytest.mark.parametrize(
    ("name", "reference", "tolerance"),
    [
        ("min_png_rgb16_trns.png", "min_ref_half_white.png", 1),
        ("min_tif_g16_minwhite.tif", "min_ref_gray.png", 1),
        ("min_tif_f32_0to1.tif", "min_ref_gray.png", 1),
        ("min_tif_cmap8.tif", "min_ref.png", 40),  # of 256 colours
        ("photo.heic", "xmp6_only_upright.jpg", 40),  # lossy both
        ("photo_mif1.heic", "xmp6_only_upright.jpg", 40),
        ("jpg_short_jfif.jpg", "xmp6_only_upright.jpg", 1),
        ("jpg_bad_photoshop2.jpg", "xmp6_only_upright.jpg", 1),
        ("jpg_missing_eoi.jpg", "xmp6_only_upright.jpg", 1),
    ],
)
def test_reported_files_show_the_cat(name: str, reference: str, tolerance: int) -> None:
    assert difference(shown(name), shown(reference)) <= tolerance


def test_a_reported_file_of_another_size_is_read() -> None:
    assert difference(shown("min_png_phys_badcrc.png"), shown("min_ref.png")) < 100


def test_avif_is_known_by_any_of_its_brands() -> None:
    data = encoded(picture(), "AVIF")
    assert b"avif" in data[16:32]
    for major in (b"mif1", b"miaf", b"MA1B"):
        assert np.array_equal(decoded(data[:8] + major + data[12:]), decoded(data))


def test_a_reported_layout_of_tiff_is_named() -> None:
    assert "this is TIFF of grey and alpha in unsigned samples of 16 bits" in named(case("min_tif_la16.tif"))


def test_a_jpeg_is_turned_by_exif_alone_as_browsers_do() -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:tiff="t"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(picture(48, 32), "JPEG")
    said = data[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + data[2:]
    assert np.array_equal(decoded(said), decoded(data))


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_xmp_turns_no_other_format(format_name: str) -> None:
    xmp = b'<x:xmpmeta xmlns:tiff="t"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(picture(48, 32), format_name)
    if format_name == "WEBP":
        said = encoded(picture(48, 32), format_name, xmp=xmp)
    else:
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        said = encoded(picture(48, 32), format_name, pnginfo=info)
    assert np.array_equal(decoded(said), decoded(data))


TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "base64": base64.b64encode,
    "a data URL": lambda data: b"data:image/jpeg;base64," + base64.b64encode(data),
    "JSON": lambda data: b'{"image": "' + base64.b64encode(data) + b'"}',
    "base64 in quotes": lambda data: repr(base64.b64encode(data)).encode(),
    "base64 of URLs": base64.urlsafe_b64encode,
    "hexadecimal": lambda data: data.hex().encode(),
    "bytes as a program prints them": lambda data: repr(data).encode(),
    "a form without files": lambda data: urllib.parse.urlencode({"image": data}).encode(),
    "a form, which /classify, /classify/batch and /embed take if its Content-Type says so": lambda data: (
        b'------WebKitFormBoundary\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + data
    ),
}


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("text", TEXTS)
def test_an_image_that_was_written_as_text_is_told_so(text: str, format_name: str) -> None:
    said = text.removesuffix(" in quotes").removesuffix(" of URLs")
    data = encoded(picture(), format_name)
    if said != "hexadecimal" or format_name in ("JPEG", "PNG", "GIF", "WEBP"):
        assert f"this is {said}; send the image's bytes" in named(TEXTS[text](data))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252"])
@pytest.mark.parametrize("errors", ["replace", "ignore"])
@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
def test_an_image_that_was_read_as_text_is_told_so(format_name: str, encoding: str, errors: str) -> None:
    data = encoded(picture(), format_name)
    for text in (data.decode(encoding, errors), data.decode(encoding, errors).replace("\r\n", "\n")):
        assert "this is an image that was read as text; send the image's bytes" in named(text.encode())
    assert "this is an image that was read as text" in named(b"\xef\xbb\xbf" + data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"https://example.org/cat.jpg", "a URL, and this server fetches nothing"),
        (b"@photos/cat.JPG\n", "the name of a file"),
        (b"[[1, 2, 3]]", "JSON"),
        (b"{}", "JSON"),
    ],
)
def test_what_only_names_an_image_is_told_so(data: bytes, text: str) -> None:
    assert f"this is {text}; send the image's bytes" in named(data)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_what_curl_d_leaves_of_a_file_is_never_classified(format_name: str) -> None:
    """It strips carriage returns, newlines and null bytes (curl's manual, --data)."""
    stripped = encoded(picture(), format_name).translate(None, b"\r\n\0")
    with pytest.raises(ServiceError) as caught:
        decoded(stripped)
    assert caught.value.code in (Code.BROKEN_IMAGE, Code.NOT_AN_IMAGE)
    if format_name in ("JPEG", "PNG"):
        assert "--data-binary" in str(caught.value)


def test_a_png_whose_line_ends_were_changed_is_told_so() -> None:
    data = encoded(picture(), "PNG")
    for changed in (data.replace(b"\r\n", b"\n"), data.replace(b"\n", b"\r\n")):
        with pytest.raises(ServiceError, match="PNG image has lost line ends on the way"):
            decoded(changed)
