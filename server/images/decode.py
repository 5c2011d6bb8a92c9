"""Compressed image to network input: the only place where Pillow meets bytes from outside."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from models.manifest import CropCount, Preprocessing
from server.errors import Code, ServiceError
from server.images.preprocess import crop_boxes, resample, rgb

FORMATS = tuple(
    image_file.format
    for image_file in (  # named, so that their plugins are imported now and Pillow never looks for others
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        AvifImagePlugin.AvifImageFile,
    )
)
"""Accepted formats, by Pillow's names, the most usual first."""

DRAFT_MARGIN = 2.0
"""The JPEG decoder may halve a photo while its short side stays at least this many times `resize`: smaller margins lose
top-1 (docs/measurements/draft.md)."""

_MAX_SCANS = 100
"""A progressive JPEG's scan of 30 bytes makes the decoder visit every pixel; encoders write about ten scans."""

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the images decoded at one time share the CPUs already
# Pillow puts parts of an upload into its warnings, and Python keeps every warning's text for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(
    data: bytes | memoryview, preprocessing: Preprocessing, outs: Sequence[npt.NDArray[np.uint8]], *, max_pixels: int
) -> None:
    """Write the network's input for a compressed image into `outs`: the centre crop, or the ten crops.

    The first frame of an animation, upright by its EXIF orientation, as RGB (see `preprocess`). May run in several
    threads at one time: decoding and resampling release the GIL. At its peak a call holds 4 bytes a pixel once (JPEG,
    opaque PNG) to five times (transparent WebP).

    Args:
        data: a file of one of FORMATS; its bytes tell which.
        preprocessing: what the model's manifest says.
        outs: one or ten of uint8[crop, crop, 3], RGB. The caller owns them; they are written to only when the image
            decoded fully.
        max_pixels: largest width x height; checked before any pixel is decoded. Opening a GIF or WebP may allocate its
            canvas before that, so Pillow's own limit, 2 * Image.MAX_IMAGE_PIXELS (179 million), stays in force.

    Raises:
        ServiceError: EMPTY_BODY, NOT_AN_IMAGE (none of FORMATS), TOO_MANY_PIXELS, or BROKEN_IMAGE.
    """
    if not data:
        raise ServiceError(Code.EMPTY_BODY, "the body is empty; send an image")
    data = bytes(data)
    format_name = _format(data)
    try:
        crops = _crops(data, format_name, preprocessing, 10 if len(outs) == 10 else 1, max_pixels)
    except ServiceError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ServiceError(
            Code.TOO_MANY_PIXELS, f"the image is too large; send one of at most {max_pixels} pixels"
        ) from error
    except Exception as error:  # on hostile bytes Pillow raises whatever its parsers run into
        raise ServiceError(
            Code.BROKEN_IMAGE,
            f"the {format_name} image is damaged or incomplete; check that it opens and send it again",
        ) from error
    for out, pixels in zip(outs, crops, strict=True):
        out[...] = pixels


def _format(data: bytes) -> str:
    for name in FORMATS:
        _, accepts = Image.OPEN[name]
        if accepts is not None and accepts(data[:16]):
            return name
    raise ServiceError(Code.NOT_AN_IMAGE, f"this is no image of an accepted format; send one of {', '.join(FORMATS)}")


def _crops(
    data: bytes, format_name: str, preprocessing: Preprocessing, count: CropCount, max_pixels: int
) -> list[npt.NDArray[np.uint8]]:
    with Image.open(io.BytesIO(data), formats=(format_name,)) as image:
        _check_cost(image, data, max_pixels)
        size = image.size
        side = int(DRAFT_MARGIN * preprocessing.resize)
        draft = image.draft(None, (side, side))  # None but for JPEG
        scale = draft[1][2] / size[0] if draft else 1.0
        image.load()
        orientation = _orientation(image)
        picture = rgb(image)
        crops = []
        for crop, (left, top, right, bottom) in crop_boxes(size, preprocessing, orientation, count):
            box = left * scale, top * scale, right * scale, bottom * scale
            pixels = np.asarray(resample(picture, box, preprocessing, orientation))
            crops.append(pixels[:, ::-1] if crop.mirrored else pixels)
        return crops


def _check_cost(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuse an opened image that would take too much memory or time to decode."""
    pixels = image.width * image.height
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # decodes whole tiles, however small the picture
        tile_width, tile_height = (
            image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
        )
        pixels = max(pixels, int(tile_width) * int(tile_height))
    if pixels > max_pixels:
        raise ServiceError(Code.TOO_MANY_PIXELS, f"the image has {pixels} pixels; send one of at most {max_pixels}")
    scans = data.count(b"\xff\xda") if image.info.get("progressive") else 1
    if scans > _MAX_SCANS:
        raise ServiceError(Code.BROKEN_IMAGE, f"the JPEG image has {scans} scans; send one of at most {_MAX_SCANS}")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image, 1 to 8; 1 where there is none. TIFF images come upright from Pillow."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # malformed metadata is no reason to refuse a picture
        return 1
