"""Draws a class activation map over the photo that it came from."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.manifest import Preprocessing
from server.images.decode import decode

LONGEST_SIDE = 1024
"""Longest side of the picture, in pixels; a smaller photo keeps its size."""
_OPACITY = 0.75
"""Opacity of the colour where the map has its maximum; elsewhere it is proportional to the map's value."""
_COLOURS = "440154481a6c472f7d41448739568c31688e2a788e23888e1f988b22a88435b77954c5687ad151a5db36d2e21bfde725"
_VIRIDIS = np.frombuffer(bytes.fromhex(_COLOURS), np.uint8).reshape(-1, 3)
"""Matplotlib's viridis in 16 colours; interpolating between them is exact to 7 levels. Its lightness rises evenly, so
colour-blind readers, or readers of a print in grey, see the same. `page/heatmap.js` has the same colours."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of a photo's width and height."""


def overlaid(data: bytes, size: tuple[int, int], values: NDArray[np.float32], box: Box, max_pixels: int) -> bytes:
    """Draw a class's map over the photo, upright and no larger than LONGEST_SIDE; returns a PNG.

    Args:
        data: the compressed image.
        size: its width and height, upright.
        values: the class's map, float32[h, w]. Where it is negative, against the class, the photo is unchanged.
        box: the part of the photo that the map covers.
        max_pixels: see `decode`.

    Raises:
        ServiceError: as `decode`.
    """
    longest = max(size)
    width, height = (max(1, round(side * min(1, LONGEST_SIDE / longest))) for side in size)
    whole = Preprocessing(
        resize=max(width, height),
        crop=(height, width),
        crop_mode="squash",
        interpolation="bilinear",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    photo = np.empty((height, width, 3), np.uint8)
    decode(data, whole, [photo], max_pixels=max_pixels)
    stream = BytesIO()
    Image.fromarray(painted(photo, values, box)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def painted(photo: NDArray[np.uint8], values: NDArray[np.float32], box: Box) -> NDArray[np.uint8]:
    """Paint a map over the `box` of a photo, uint8[H, W, 3]; see `overlaid`."""
    height, width = photo.shape[:2]
    rows, columns = values.shape
    left, top, right, bottom = box
    across, down = columns / ((right - left) * width), rows / ((bottom - top) * height)
    steps = (across, 0.0, -left * width * across, 0.0, down, -top * height * down)
    spread = Image.fromarray(values.astype(np.float32)).transform(
        (width, height), Image.Transform.AFFINE, steps, Image.Resampling.BILINEAR
    )
    strength = np.asarray(spread).clip(0) / max(float(values.max()), np.finfo(np.float32).tiny)
    at = strength.clip(0, 1) * (len(_VIRIDIS) - 1)
    colours = np.stack([np.interp(at, np.arange(len(_VIRIDIS)), channel) for channel in _VIRIDIS.T], 2)
    opacity = _OPACITY * strength.clip(0, 1)[..., np.newaxis]
    mixed: NDArray[np.uint8] = np.rint(photo * (1 - opacity) + colours * opacity).astype(np.uint8)
    return mixed
