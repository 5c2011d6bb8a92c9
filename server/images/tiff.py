"""TIFF: chooses which of its many layouts to decode, and corrects what Pillow gets wrong in them."""

import ctypes
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin, _imaging
from PIL.TiffImagePlugin import TiffImageFile

from server.images.formats import damaged, incomplete, unsupported
from server.images.tiff_directory import (
    COEFFICIENTS,
    COLOUR_MAP,
    COMPRESSION,
    INK_SET,
    PHOTOMETRIC,
    PLANAR,
    REFERENCE,
    SUBSAMPLING,
    YCBCR,
    Directory,
)

with suppress(AttributeError, OSError):  # otherwise libtiff prints its errors between the lines of the log
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34925, 50000}
"""Compressions that the libtiff in Pillow's wheels decodes."""
_COMPRESSION_NAMES = {
    9: "JBIG",
    10: "JBIG",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34933: "PNG",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_NATIVE = {
    **{f"{name};16{order}": f"{name};16N" for name in ("RGB", "RGBA", "RGBa", "RGBX", "CMYK") for order in "LB"},
    "I;16": "I;16N",
    "I;16B": "I;16N",
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
}
"""Pillow's names of samples in either byte order to those in the machine's, to which libtiff converts them."""
_YCBCR = {SUBSAMPLING: (1, 1), COEFFICIENTS: (0.299, 0.587, 0.114), REFERENCE: (0, 255, 128, 255, 128, 255)}
"""Values with which Pillow itself reads YCbCr correctly; a missing SUBSAMPLING means (2, 2)."""
_MAX_16_BIT = 65_535
_NEARLY_ALL = 0.99
_DARK = 16


class Prepared(NamedTuple):
    """A file that Pillow decodes, and whether Pillow's result is a negative."""

    data: bytes
    negative: bool


def prepared(data: bytes) -> Prepared:
    """The file for Pillow to decode.

    Raises:
        ServiceError: NOT_AN_IMAGE, which names the unsupported variant; BROKEN_IMAGE, there are too many tags, or no
            offset for a part of the picture.
        struct.error: the file ends before its first directory does.
    """
    if data[8:10] == b"CR" or (directory := Directory(data)).camera_file:  # CR2 has its signature there
        raise unsupported("a camera's raw file (of the kind of DNG, CR2, NEF or ARW)")
    if data.startswith(b"MM\0+"):
        raise unsupported("BigTIFF with its most significant bytes first")
    compression = directory.number(COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        raise unsupported(f"TIFF compressed by {_COMPRESSION_NAMES.get(compression, f'method {compression}')}")
    layout = directory.layout
    if not layout.decoded or directory.number(INK_SET, 1) != 1:
        raise unsupported(f"TIFF of {layout}") if directory.has_whole_tags else damaged(data, "TIFF")
    if (share := directory.share_of_parts) < 1:
        raise incomplete("TIFF", share)
    if not directory.has_whole_jpegs:
        raise damaged(data, "TIFF")
    return Prepared(directory.black_is_zero(), negative=True) if layout.negative else Prepared(data, negative=False)


def opened(image: TiffImageFile, data: bytes) -> None:
    """Correct how Pillow has interpreted the tags of a file, `data`, before the image is loaded."""
    image.info.pop("xmp", None)  # else Pillow would use its orientation if there is no tag for that
    tags = image.tag_v2
    unusual = tags.get(PHOTOMETRIC) == YCBCR and (
        SUBSAMPLING not in tags or any(tags.get(tag, usual) != usual for tag, usual in _YCBCR.items())
    )
    if not image.use_load_libtiff and (tags.get(PLANAR) == 2 or unusual):
        _leave_to_libtiff(image, data)
    if image.use_load_libtiff:
        (tile,) = image.tile
        if isinstance(tile.args, tuple):
            raw, *others = tile.args
            image.tile = [tile._replace(args=(_NATIVE.get(raw, raw), *others))]
    colours = tags.get(COLOUR_MAP)
    if image.mode in ("P", "PA") and colours and max(colours) < 256:  # 8-bit colours, against the specification
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def _leave_to_libtiff(image: TiffImageFile, data: bytes) -> None:
    """Have libtiff read an uncompressed image: Pillow reads these itself, most planes and most YCbCr wrongly."""
    layout = Directory(data).layout
    if layout.photometric == YCBCR:
        image._mode, raw = "RGB", "RGBX"
    else:
        bits, extras = layout.bits, layout.extras
        if not any(extras):
            bits, extras = bits[: len(bits) - len(extras)], ()
        _, raw = TiffImagePlugin.OPEN_INFO[
            image.tag_v2.prefix, layout.photometric, (layout.sample_format,), 1, bits, extras
        ]
    image.use_load_libtiff = True
    image.tile = [ImageFile._Tile("libtiff", (0, 0, *image._tile_size), 0, (raw, False, image.tag_v2.offset))]


def grey(image: Image.Image, *, negative: bool) -> Image.Image:
    """Reduce a loaded picture's samples to 8 bits, if they have more.

    Integers of 16 bits are divided by 256. Floats have no agreed range: if nearly all are at most 1, it is taken to be
    0 to 1, else 0 to 255; the few beyond are clipped.

    Raises:
        ServiceError: NOT_AN_IMAGE, the samples have another range.
    """
    match image.mode:
        case "F":
            found = Image.fromarray(_from_floats(np.asarray(image)))
        case "I":
            low, high = image.getextrema()
            if not isinstance(low, int) or not isinstance(high, int) or low < 0 or high > _MAX_16_BIT:
                raise unsupported("TIFF of signed samples of 32 bits outside of 0 to 65535")
            found = image.point(lambda value: value / 256).convert("L")
        case mode if mode.startswith("I;16"):
            found = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        case _:
            return image
    return found.point(lambda value: 255 - value) if negative else found


def _from_floats(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    values = np.nan_to_num(values)  # infinite values become the largest
    if np.mean(values <= 1) >= _NEARLY_ALL:
        return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
    if np.mean(values <= 255) < 0.5 or np.mean(values <= _DARK) >= _NEARLY_ALL:
        raise unsupported("TIFF of floating-point samples that are neither of 0 to 1 nor of 0 to 255")
    return np.clip(values, 0, 255).astype(np.uint8)
