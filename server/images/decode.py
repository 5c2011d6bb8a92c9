"""Compressed image to network input. Pillow opens files from clients here, and once more in `png_repair`."""

import logging
import warnings
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import AvifImagePlugin, Image
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from models.manifest import CropCount, Preprocessing
from server.errors import Code, ServiceError
from server.images import bmp, gif, iso_media, jpeg_repair, png_repair, tiff, webp_repair
from server.images.bounds import BoundedReads, check_jpeg, check_jpeg_pixels, check_pixels
from server.images.formats import FORMATS, PLUGINS, damaged, format_of, incomplete, unsupported
from server.images.jpeg import JpegDecoder
from server.images.orientation import orientation
from server.images.preprocess import finished, resample, resized_as_stored, rgb, upright, upright_size, windows
from server.images.tiff_directory import Directory

__all__ = ["DRAFT_MARGIN", "FORMATS", "decode"]

DRAFT_MARGIN = 2.0
"""The JPEG decoder may halve a photo while its sides remain at least this many times their resized length: smaller
margins lose top-1 accuracy (docs/measurements/draft.md)."""

# One thread per image: the images that are decoded at one time already use all CPUs.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
pillow_heif.options.DECODE_THREADS = 1
# Only the picture itself is needed, without the extra images that phones add.
pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = pillow_heif.options.AUX_IMAGES = False
# Pillow's warnings quote parts of uploads, and Python keeps the text of every warning for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # the client's answer says what is wrong with an image


class _Picture(NamedTuple):
    """A decoded image."""

    pixels: Image.Image  # RGB
    size: tuple[int, int]  # width and height in the file
    scale: float  # of the pixels' width to the width in the file
    orientation: int


class _Cropped(NamedTuple):
    """The network's input from one image."""

    crops: list[npt.NDArray[np.uint8]]
    size: tuple[int, int]  # of the image, upright


class _Wanted(NamedTuple):
    """How to turn an image into the network's input."""

    preprocessing: Preprocessing
    crops: CropCount
    max_pixels: int


def decode(
    data: bytes | memoryview,
    preprocessing: Preprocessing,
    outs: Sequence[npt.NDArray[np.uint8]],
    *,
    max_pixels: int,
    jpeg_decoder: JpegDecoder | None = None,
) -> tuple[int, int]:
    """Write the network's input for a compressed image into `outs`: the centre crop, or the ten crops.

    The crops are RGB, upright by the image's EXIF orientation, and for an animation those of its first frame (see
    `preprocess`). May run in several threads at one time, as decoding and resampling release the GIL. At its peak a
    call holds 4 bytes a pixel once (JPEG, opaque PNG) to five times (transparent WebP). Damage that does not affect the
    pixels (in metadata, or a missing end marker) is ignored, as browsers do.

    Args:
        data: a file in one of FORMATS, detected from its bytes.
        preprocessing: from the model's manifest.
        outs: one or ten arrays uint8[H, W, 3], RGB. The caller owns them; they are written to only if the whole image
            was decoded.
        max_pixels: largest width x height, each counted as 64 or more; checked before any pixel is decoded. A JPEG that
            is halved while it is decoded may have more, within the same memory: `bounds.PIXEL_BYTES` for each of
            `max_pixels`. Opening a GIF or WebP may allocate its canvas before the check, so Pillow's own limit,
            2 * Image.MAX_IMAGE_PIXELS (179 million), stays in force.
        jpeg_decoder: tried first for JPEG; None: Pillow decodes everything.

    Returns:
        The image's width and height, upright.

    Raises:
        ServiceError: EMPTY_BODY, NOT_AN_IMAGE (none of FORMATS, or a variant that is not supported),
            TOO_MANY_PIXELS, or BROKEN_IMAGE.
    """
    if not data:
        raise ServiceError(Code.EMPTY_BODY, "the body is empty; send an image")
    data = bytes(data)
    format_name = format_of(data)
    wanted = _Wanted(preprocessing, 10 if len(outs) == 10 else 1, max_pixels)
    try:
        found = _crops(data, format_name, wanted, jpeg_decoder)
    except ServiceError:
        raise
    except Exception as error:  # on hostile bytes, Pillow's parsers raise errors of any kind
        found = _crops_of_damaged(data, format_name, wanted, error)
    for out, pixels in zip(outs, found.crops, strict=True):
        out[...] = pixels
    return found.size


def _crops(data: bytes, format_name: str, wanted: _Wanted, jpeg_decoder: JpegDecoder | None) -> _Cropped:
    try:
        if format_name == "JPEG":
            return _crops_of_jpeg(data, wanted, jpeg_decoder)
        return _crops_of(_picture(data, format_name, wanted.max_pixels), wanted)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ServiceError(
            Code.TOO_MANY_PIXELS, f"the image is too large; send one of at most {wanted.max_pixels} pixels"
        ) from error


def _crops_of_damaged(data: bytes, format_name: str, wanted: _Wanted, error: Exception) -> _Cropped:
    """Try again without metadata; `error` is the failure of the first attempt."""
    if (variant := _variant(data, format_name, error)) is not None:
        raise unsupported(variant) from error
    try:
        mended = _without_metadata(data, format_name, wanted.max_pixels, error)
        if mended is not None:
            return _crops(mended, format_name, wanted, None)
    except ServiceError:
        raise
    except Exception:  # it failed again
        mended = None
    if (share := _share_of_bytes(data, format_name)) < 1:
        raise incomplete(format_name, share, "bytes") from error
    raise damaged(data, format_name) from error


def _variant(data: bytes, format_name: str, error: Exception) -> str | None:
    """Name of the unsupported variant that an apparently undamaged image has; None: it has none."""
    match format_name:
        case "JPEG":
            return jpeg_repair.variant(data)
        case "BMP" if str(error).startswith("Unsupported BMP "):
            return f"BMP of a variant ({str(error).removeprefix('Unsupported BMP ')})"
        case "PNG" if data[12:16] == b"CgBI":
            return "PNG of Apple's own kind (CgBI)"
        case "AVIF" | "HEIF":
            return iso_media.variant(data, format_name)
        case _:
            return None


def _share_of_bytes(data: bytes, format_name: str) -> float:
    """Share of the file that is there, 0 to 1; 1 for formats that do not state their length."""
    match format_name:
        case "WEBP":
            return len(data) / max(len(data), webp_repair.length(data))
        case "AVIF" | "HEIF":
            return len(data) / max(len(data), iso_media.length(data))
        case _:
            return 1.0


def _without_metadata(data: bytes, format_name: str, max_pixels: int, error: Exception) -> bytes | None:
    """The image that failed with `error`, reduced to its pixels; None: that is not possible.

    Raises:
        ServiceError: BROKEN_IMAGE, some of its pixels are missing.
        Exception: any error of parsing it.
    """
    match format_name:
        case "JPEG":
            return jpeg_repair.without_metadata(data)
        case "PNG" if not png_repair.is_bomb(error, data):
            mended = png_repair.without_metadata(data, max_pixels)
            if mended is not None and mended.share < 1:
                raise incomplete(format_name, mended.share)
            return None if mended is None else mended.data
        case "WEBP":
            return webp_repair.without_metadata(data)
        case "TIFF":
            directory = Directory(data)
            if directory.share < 1:
                raise incomplete(format_name, directory.share)
            return directory.without_metadata()
        case "BMP" if (share := bmp.share(data)) < 1:
            raise incomplete(format_name, share)
        case _:
            return None


def _crops_of(picture: _Picture, wanted: _Wanted) -> _Cropped:
    how, interpolation = wanted.preprocessing, wanted.preprocessing.interpolation
    if interpolation == "nearest" and picture.orientation != 1:  # the nearest pixels are those of the upright picture
        pixels = upright(picture.pixels, picture.orientation)
        picture = _Picture(pixels, pixels.size, 1.0, 1)
    crops = []
    for window in windows(picture.size, how, picture.orientation, wanted.crops):
        left, top, right, bottom = (side * picture.scale for side in window.box)
        pixels = resample(picture.pixels, (left, top, right, bottom), window.size, interpolation)
        crops.append(finished(pixels, window, how, picture.orientation))
    return _Cropped(crops, upright_size(picture.size, picture.orientation))


def _crops_of_jpeg(data: bytes, wanted: _Wanted, jpeg_decoder: JpegDecoder | None) -> _Cropped:
    first = check_jpeg(data)
    if (bare := jpeg_repair.without_end(data, first)) is not None:
        return _crops_of(_jpeg_without_end(bare, first, wanted), wanted)
    with JpegImageFile(BoundedReads(data)) as image:
        if jpeg_decoder is not None and prod(image.size) <= wanted.max_pixels:
            turned = orientation(image.info.get("exif"))
            parts = windows(image.size, wanted.preprocessing, turned, wanted.crops)
            pixels = jpeg_decoder.crops(data, image, parts, wanted.preprocessing.interpolation)
            if pixels is not None:
                stored = zip(map(Image.fromarray, pixels), parts, strict=True)
                crops = [finished(each, window, wanted.preprocessing, turned) for each, window in stored]
                return _Cropped(crops, upright_size(image.size, turned))
        return _crops_of(_loaded_jpeg(image, data, first, wanted), wanted)


def _loaded_jpeg(image: JpegImageFile, data: bytes, first: int, wanted: _Wanted) -> _Picture:
    size, turned, draft = image.size, orientation(image.info.get("exif")), None
    if wanted.preprocessing.interpolation != "nearest":  # "nearest" must choose from the full-size pixels
        width, height = resized_as_stored(size, wanted.preprocessing, turned)
        draft = image.draft(None, (int(DRAFT_MARGIN * width), int(DRAFT_MARGIN * height)))
    check_jpeg_pixels(image, size, data, first, wanted.max_pixels)
    image.load()
    return _Picture(rgb(image), size, draft[1][2] / size[0] if draft else 1.0, turned)


def _jpeg_without_end(data: bytes, first: int, wanted: _Wanted) -> _Picture:
    """Decode a photo without an end marker, with two different ends: if all its pixels are there, both look the same.

    Raises:
        ServiceError: BROKEN_IMAGE, some pixels are missing.
        Exception: any error of Pillow's, as for other photos.
    """
    pictures = []
    for end in (jpeg_repair.END, jpeg_repair.FILLER + jpeg_repair.END):
        with JpegImageFile(BoundedReads(data + end)) as image:
            pictures.append(_loaded_jpeg(image, data, first, wanted))
            progressive = bool(image.info.get("progressive"))
    picture, other = (np.asarray(each.pixels) for each in pictures)
    same = [np.array_equal(row, changed) for row, changed in zip(picture, other, strict=True)]
    if progressive and not (all(same) and jpeg_repair.complete_scans(data)):
        raise ServiceError(
            Code.BROKEN_IMAGE, "the progressive JPEG image ends before its last scan does; send all of it"
        )
    if not all(same):
        raise incomplete("JPEG", same.index(False) / len(same))
    return pictures[0]


def _picture(data: bytes, format_name: str, max_pixels: int) -> _Picture:
    """Decode an image in any format but JPEG."""
    negative = False
    match format_name:
        case "TIFF":
            data, negative = tiff.prepared(data)
        case "AVIF" | "HEIF":
            iso_media.check(data, format_name)
        case "GIF":
            data = gif.without_metadata(data)
        case "PNG":
            png_repair.check(data, max_pixels)
        case "BMP":
            data = bmp.prepared(data)
    with PLUGINS[format_name](BoundedReads(data)) as image:
        if isinstance(image, TiffImageFile):
            tiff.opened(image, data)
        check_pixels(image, max_pixels)
        if format_name == "GIF" and not gif.has_palette(data):
            raise damaged(data, format_name)
        covered = None
        if isinstance(image, GifImageFile):
            covered = image.tile[0].extents
        elif format_name == "WEBP":
            covered = webp_repair.covered(data)
        image.load()
        # Pillow already turns TIFF images upright, and libheif HEIF images, by the file's own boxes instead of EXIF.
        turned = 1 if format_name in ("TIFF", "HEIF") else orientation(image.info.get("exif"))
        if isinstance(image, TiffImageFile):
            pixels = rgb(tiff.grey(image, negative=negative))
        elif isinstance(image, PngImageFile):
            pixels = rgb(png_repair.with_transparency(image, data))
        else:
            pixels = rgb(image)
        if covered is not None and covered != (0, 0, *image.size):  # the rest of the canvas is transparent
            frame, pixels = pixels.crop(covered), Image.new("RGB", image.size, "white")
            pixels.paste(frame, covered)
        return _Picture(pixels, pixels.size, 1.0, turned)
