"""Pictures in every format and mode, whole and damaged, for the tests of decoders."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
from hypothesis import strategies as st
from PIL import ExifTags, Image

from models.manifest import Preprocessing
from server.errors import Code, ServiceError
from server.images.decode import decode

pillow_heif.register_heif_opener()  # only to write HEIF; the server opens it itself

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 1_000_000
SIDE = 32
LOSSY = {"JPEG", "WEBP", "AVIF", "HEIF"}


def preprocessing(resize: int = SIDE, crop: int = SIDE, interpolation: Any = "bicubic") -> Preprocessing:
    return Preprocessing(resize=resize, crop=crop, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1))


def decoded(data: bytes, how: Preprocessing | None = None, max_pixels: int = MAX_PIXELS) -> Pixels:
    how = how or preprocessing()
    out = np.zeros((*how.crop, 3), np.uint8)
    decode(data, how, [out], max_pixels=max_pixels)
    return out


def refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> Code:
    """The code of the refusal, after checking that `out` was left alone."""
    out = np.full((SIDE, SIDE, 3), 77, np.uint8)
    with pytest.raises(ServiceError) as caught:
        decode(data, preprocessing(), [out], max_pixels=max_pixels)
    assert np.all(out == 77)
    return caught.value.code


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **({"quality": 95} if format_name in LOSSY else {}) | options)
    return buffer.getvalue()


def difference(left: Pixels, right: Any) -> int:
    return int(np.abs(left.astype(int) - np.asarray(right, int)).max())


def picture(width: int = SIDE, height: int = SIDE) -> Image.Image:
    """A picture that is smooth, so that lossy formats change it little, and different in each corner and channel."""
    across = np.broadcast_to(np.linspace(20, 230, width), (height, width))
    down = np.broadcast_to(np.linspace(230, 20, height)[:, None], (height, width))
    return Image.fromarray(np.stack([across, down, (across + down) / 2], axis=2).astype(np.uint8))


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def on_white(image: Image.Image) -> Pixels:
    """The image over white, by the formula, in floats."""
    pixels = np.asarray(image.convert("RGBA"), float)
    alpha = pixels[..., 3:] / 255
    return np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def grey16(dtype: str) -> Image.Image:
    return Image.fromarray((np.asarray(picture().convert("L")).astype(np.int64) * 257).astype(dtype))


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    pixels: bytes,
    *chunks: tuple[bytes, bytes],
    interlaced: bool = False,
) -> bytes:
    """A PNG with these filtered rows, and `chunks` before them."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    parts = [header, *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def tiff(width: int, height: int, bits: tuple[int, ...], photometric: int, data: bytes, **tags: int) -> bytes:
    """A little-endian TIFF: one strip, or one tile if `tile` gives its side; the data come before the directory."""
    entries = {256: width, 257: height, 259: tags.get("compression", 1), 262: photometric, 277: len(bits)}
    entries |= {322: tags["tile"], 323: tags["tile"], 324: 8, 325: len(data)} if "tile" in tags else {}
    entries |= {273: 8, 278: height, 279: len(data)} if "tile" not in tags else {}
    entries |= {338: tags["extra"]} if "extra" in tags else {}
    bits_at = 8 + len(data)
    rows = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items()}
    rows[258] = struct.pack("<HHI", 258, 3, len(bits))
    rows[258] += struct.pack("<I", bits_at) if len(bits) > 2 else struct.pack(f"<{len(bits)}H", *bits).ljust(4, b"\0")
    directory = struct.pack("<H", len(rows)) + b"".join(rows[tag] for tag in sorted(rows)) + bytes(4)
    tail = struct.pack(f"<{len(bits)}H", *bits)
    return b"II*\0" + struct.pack("<I", bits_at + len(tail)) + data + tail + directory


OPAQUE: dict[str, Image.Image] = {mode: picture().convert(mode) for mode in ("1", "L", "RGB", "CMYK", "YCbCr", "LAB")}
OPAQUE["P"] = picture().quantize(200)
WIDE = {"I;16": grey16("<u2"), "I;16B": grey16(">u2"), "I": grey16("<i4")}
TRANSPARENT = {
    "RGBA": with_alpha(picture()),
    "LA": with_alpha(picture().convert("L")),
    "PA": with_alpha(picture().quantize(200)),
}

CAN_STORE = {
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I;16B"),
    "WEBP": ("L", "RGB", "RGBA", "LA"),
    "GIF": ("1", "L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "RGBA", "LA", "PA", "I;16", "I;16B", "I"),
    "AVIF": ("L", "RGB", "RGBA", "LA"),
    "HEIF": ("L", "RGB", "RGBA", "LA"),
}
CASES = [(format_name, mode) for format_name, modes in CAN_STORE.items() for mode in modes]

SAMPLES = {
    **{f"{name} {mode}": encoded((OPAQUE | WIDE | TRANSPARENT)[mode], name) for name, mode in CASES},
    "progressive JPEG": encoded(picture(), "JPEG", progressive=True),
    "JPEG with EXIF": encoded(picture(), "JPEG", exif=Image.Exif().tobytes()),
    "interlaced GIF": encoded(picture().quantize(16), "GIF", interlace=1),
    "LZW TIFF": encoded(picture(), "TIFF", compression="tiff_lzw"),
    "JPEG TIFF": encoded(picture(), "TIFF", compression="jpeg"),
    "animated WEBP": encoded(picture(), "WEBP", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]),
    "animated GIF": encoded(picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]),
    "APNG": encoded(picture(), "PNG", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]),
}

TURNED_FROM_UPRIGHT = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def as_stored(upright: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    """An upright picture as a camera in another orientation stores it, and its EXIF data."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turn = TURNED_FROM_UPRIGHT[orientation]
    return upright if turn is None else upright.transpose(turn), exif


@st.composite
def damaged(draw: st.DrawFn, names: Sequence[str] = tuple(sorted(SAMPLES))) -> bytes:
    """A real image with bytes overwritten, cut out, spliced in from another, or missing at the end."""
    data = bytearray(SAMPLES[draw(st.sampled_from(names))])
    for _ in range(draw(st.integers(1, 6))):
        # headers are at the front, in TIFF at the end
        where = draw(st.one_of(st.integers(0, 64), st.integers(0, len(data)), st.integers(-64, -1)))
        match draw(st.sampled_from(["overwrite", "insert", "cut", "splice", "truncate"])):
            case "overwrite":
                junk = draw(st.binary(min_size=1, max_size=4))
                data[where : where + len(junk)] = junk
            case "insert":
                data[where:where] = draw(st.binary(min_size=1, max_size=32))
            case "cut":
                del data[where : where + draw(st.integers(1, 32))]
            case "splice":
                data[where:] = SAMPLES[draw(st.sampled_from(sorted(SAMPLES)))][where:]
            case "truncate":
                del data[where:]
    return bytes(data)
