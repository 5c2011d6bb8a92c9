"""Turns a decoded image of any size and mode into the RGB pixels of the network's crop, as torchvision and timm do."""

from math import ceil, floor, nextafter, prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.manifest import CropCount, Interpolation, Preprocessing

try:
    import cykooz_resizer as simd
except ImportError:  # there are no wheels for Linux on ARM
    simd = None

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_SIMD_FILTERS: dict[Interpolation, str] = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}
"""The same filters by cykooz_resizer's names: Pillow's bicubic has a = -0.5 (Keys, 1981), the Catmull-Rom spline."""
_SUPPORT = 3
"""Lanczos reaches three pixels to each side (source or target pixels, the larger ones); bicubic two, bilinear one."""

_WHOLE_PIXELS = 2**22
"""The whole image is resized, although only a part is needed, if the result has at most this many pixels: 12 MiB."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation (CIPA DC-008, tag 0x0112), the operation that turns a stored picture upright; 1 already is."""
_TURNED = {5, 6, 7, 8}
_MIRRORED_X = {2, 3, 7, 8}
_MIRRORED_Y = {3, 4, 6, 7}


class Window(NamedTuple):
    """The part of a stored image that one crop shows."""

    box: Box
    """The part, in pixels of the stored image."""
    size: tuple[int, int]
    """Width and height to resample the part to, before it is turned upright."""
    left: int
    """Position of the upright part in the crop, as `top`; above 0 if the crop is larger than the resized image."""
    top: int
    mirrored: bool


def windows(
    size: tuple[int, int], preprocessing: Preprocessing, orientation: int = 1, count: CropCount = 1
) -> list[Window]:
    """The parts of a stored image of `size` (width, height) that resizing and cropping keep.

    Crops are positioned from the upright picture's left and top, and the centre rounds half to even: if `orientation`
    mirrors an axis, the odd pixel is on the other side of the stored picture. The boxes do not include the mirroring of
    the crops themselves.
    """
    turned = orientation in _TURNED
    upright_sides = upright_size(size, orientation)
    resized = preprocessing.resized(upright_sides)
    height, width = preprocessing.crop

    def interval(start: int, length: int, axis: int) -> tuple[float, float]:
        """Start and end in the stored picture of an interval along an `axis` of the upright, resized one."""
        whole, scale = resized[axis], upright_sides[axis] / resized[axis]
        stored_axis = 1 - axis if turned else axis
        if orientation in (_MIRRORED_X, _MIRRORED_Y)[stored_axis]:
            start = whole - length - start
        return start * scale, (start + length) * scale

    found = []
    for crop in preprocessing.crops(resized, count):
        left, top = max(0, crop.left), max(0, crop.top)
        shown = min(resized[0], crop.left + width) - left, min(resized[1], crop.top + height) - top
        across, down = interval(left, shown[0], 0), interval(top, shown[1], 1)
        if turned:
            across, down, shown = down, across, (shown[1], shown[0])
        box = (across[0], down[0], across[1], down[1])
        found.append(Window(box, shown, left - crop.left, top - crop.top, crop.mirrored))
    return found


def resized_as_stored(size: tuple[int, int], preprocessing: Preprocessing, orientation: int) -> tuple[int, int]:
    """Width and height to which a stored image of `size` is resized, before cropping."""
    if orientation in _TURNED:
        height, width = preprocessing.resized((size[1], size[0]))
        return width, height
    return preprocessing.resized(size)


def resample(image: Image.Image, box: Box, size: tuple[int, int], interpolation: Interpolation) -> Image.Image:
    """Resample the `box` of an RGB image to `size` (width, height).

    Resampling the box alone gives the same pixels as resize-then-crop, up to rounding, and needs no memory for the
    rest; a box of `size` whole pixels passes through unchanged. cykooz_resizer agrees with Pillow within 2 levels, and
    uses the CPU's vector instructions. Pillow may do either pass first; both libraries round and clip to 8 bits in
    between, so bicubic and lanczos may differ by some levels at sharp edges.
    """
    if interpolation == "nearest":
        return _nearest(image, box, size)
    if simd is None:
        return image.resize(size, _FILTERS[interpolation], box)
    left, top, right, bottom = box
    width, height = size
    margin = _SUPPORT * max(1.0, (bottom - top) / height)
    first, last = max(0, floor(top - margin)), min(image.height, ceil(bottom + margin))
    # In two steps: if it resizes both axes at once, cykooz_resizer 4.0.1 reads beyond images that it enlarges.
    narrowed = _resized(image, (width, last - first), (left, first, right, last), interpolation)
    return _resized(narrowed, size, (0, top - first, width, bottom - first), interpolation)


def finished(pixels: Image.Image, window: Window, preprocessing: Preprocessing, orientation: int) -> NDArray[np.uint8]:
    """Make the crop, uint8[H, W, 3], from resampled pixels, turned upright only now, as they are fewer."""
    found = np.asarray(upright(pixels, orientation))
    if found.shape[:2] != preprocessing.crop:
        whole = np.full((*preprocessing.crop, 3), preprocessing.fill, np.uint8)
        whole[window.top : window.top + len(found), window.left : window.left + found.shape[1]] = found
        found = whole
    return found[:, ::-1] if window.mirrored else found


def _nearest(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Take the pixels in which the centres of the target's pixels lie.

    Many centres lie on the edge between two pixels, where rounding errors decide. To get Pillow's own, the whole image
    is resized, unless that would be large.
    """
    left, top, right, bottom = box
    across, down = (right - left) / size[0], (bottom - top) / size[1]
    whole = round(image.width / across), round(image.height / down)
    if prod(whole) <= _WHOLE_PIXELS:
        x, y = round(left / across), round(top / down)
        return image.resize(whole, Image.Resampling.NEAREST).crop((x, y, x + size[0], y + size[1]))
    steps = (across, 0.0, left, 0.0, down, top)
    return image.transform(size, Image.Transform.AFFINE, steps, Image.Resampling.NEAREST)


def _resized(image: Image.Image, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Image.Image:
    left, top, right, bottom = box
    crop_box = simd.CropBox(left, top, _extent(left, right, image.width), _extent(top, bottom, image.height))
    algorithm = simd.ResizeAlg.convolution(simd.FilterType[_SIMD_FILTERS[interpolation]])
    resized = Image.new("RGB", size)
    simd.Resizer().resize_pil(image, resized, simd.ResizeOptions(algorithm, crop_box=crop_box))
    return resized


def _extent(start: float, end: float, limit: int) -> float:
    """Extent of a box, rounded so that `start` plus extent does not exceed `limit`, as cykooz_resizer demands."""
    extent = min(end, limit) - start
    return extent if start + extent <= limit else nextafter(extent, 0)


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of a stored image of `size` once it is upright."""
    return (size[1], size[0]) if orientation in _TURNED else size


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a stored image upright by its EXIF orientation, 1 to 8."""
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB.

    Transparent pixels become white, which most viewers and pages show behind a picture; the colour stored under them is
    arbitrary. Integers wider than 8 bits are taken as 16 bits and divided by 256; Pillow would clip them. Floats have
    no agreed range: they are taken as 0 to 255 and clipped, as Pillow does. Colour profiles are ignored, as torchvision
    does.
    """
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode == "La":  # Pillow converts premultiplied grey only to LA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), _converted(image, "RGBA"))
    return _converted(image, "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert copies even when there is nothing to do
