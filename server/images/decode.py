"""Compressed image to network input: the only place where Pillow meets bytes from outside."""

import io
import warnings

import numpy as np
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

from models.manifest import Preprocessing
from server.errors import Code, ServiceError
from server.images.preprocess import crop_box, preprocess

_PLUGINS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
    AvifImagePlugin.AvifImageFile,
)
FORMATS = tuple(plugin.format for plugin in _PLUGINS)

DRAFT_MARGIN = 2

Image.MAX_IMAGE_PIXELS = None  # decode()'s own max_pixels takes its place
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the pool that calls decode() is the parallelism
# Pillow warns of odd metadata with texts made from the upload, and Python remembers each text for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes | memoryview, preprocessing: Preprocessing, out: np.ndarray, *, max_pixels: int) -> None:
    if not data:
        raise ServiceError(Code.EMPTY_BODY, "the body is empty; send an image")
    name = _format(bytes(data[:16]))
    try:
        pixels = _pixels(data, name, preprocessing, max_pixels)
    except ServiceError:
        raise
    except Exception as error:
        raise ServiceError(Code.BROKEN_IMAGE, f"the {name} image is damaged or incomplete; send it whole") from error
    out[...] = pixels


def _format(prefix: bytes) -> str:
    for name in FORMATS:
        _, accepts = Image.OPEN[name]
        if accepts and accepts(prefix):
            return name
    raise ServiceError(Code.NOT_AN_IMAGE, f"the body is no image; send one of {', '.join(FORMATS)}")


def _pixels(data, name, preprocessing, max_pixels):
    with Image.open(io.BytesIO(data), formats=(name,)) as image:
        size = width, height = image.size
        if width * height > max_pixels:
            raise ServiceError(
                Code.TOO_MANY_PIXELS, f"the image has {width} x {height} pixels; send one of at most {max_pixels}"
            )
        side = int(min(DRAFT_MARGIN * preprocessing.resize, 65536))
        draft = image.draft(None, (side, side))
        scale = draft[1][2] / width if draft else 1
        image.load()
        orientation = _orientation(image)
        left, top, right, bottom = crop_box(size, preprocessing, orientation)
        box = left * scale, top * scale, right * scale, bottom * scale
        return np.asarray(preprocess(image, box, preprocessing, orientation))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
