"""From a decoded image of any size and mode to the network's `crop` x `crop` RGB pixels, as torchvision does it."""

from math import ceil, floor, nextafter

from PIL import Image

from models.manifest import Crop, CropCount, Preprocessing

try:
    import cykooz_resizer as simd
except ImportError:  # it has no wheels for Linux on ARM
    simd = None

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SIMD_FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom"}
"""The same by cykooz_resizer's names: Pillow's bicubic has a = -0.5 (Keys, 1981), which is Catmull and Rom's spline."""
_SUPPORT = 2
"""Bicubic reaches two pixels to each side, of the larger of the two pictures; bilinear one."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (CIPA DC-008, tag 0x0112) to what turns the stored picture upright; 1 is upright already."""
_TURNED = {5, 6, 7, 8}
_MIRRORED_X = {2, 3, 7, 8}
_MIRRORED_Y = {3, 4, 6, 7}


def crop_boxes(
    size: tuple[int, int], preprocessing: Preprocessing, orientation: int = 1, count: CropCount = 1
) -> list[tuple[Crop, Box]]:
    """The parts of a stored image of `size` (width, height) that resizing and cropping keep.

    The crops count from the upright picture's left and top, and the centre rounds half to even: where `orientation`
    mirrors an axis, the stored picture's odd pixel is on the other side. The boxes leave the crops' own mirroring out.
    """
    resized = tuple(int(preprocessing.resize * side / min(size)) for side in size)
    turned = orientation in _TURNED

    def interval(start: int, axis: int, *, mirrored: bool) -> tuple[float, float]:
        if mirrored:
            start = resized[axis] - preprocessing.crop - start
        scale = size[axis] / resized[axis]
        return start * scale, (start + preprocessing.crop) * scale

    boxes = []
    for crop in preprocessing.crops((resized[1], resized[0]) if turned else (resized[0], resized[1]), count):
        x, y = (crop.top, crop.left) if turned else (crop.left, crop.top)
        left, right = interval(x, 0, mirrored=orientation in _MIRRORED_X)
        top, bottom = interval(y, 1, mirrored=orientation in _MIRRORED_Y)
        boxes.append((crop, (left, top, right, bottom)))
    return boxes


def resample(image: Image.Image, box: Box, preprocessing: Preprocessing) -> Image.Image:
    """The `box` of an RGB image as `crop` x `crop` pixels.

    Resampling the box alone gives the pixels of resize-then-crop, up to rounding, and needs no memory for the rest; a
    box of `crop` x `crop` whole pixels passes through unchanged. cykooz_resizer computes what Pillow does, within 2
    levels, with the vector instructions of the CPU. Pillow takes either pass first; both round and clip to 8 bits in
    between, so that bicubic may differ by some levels at sharp edges.
    """
    side = preprocessing.crop
    if simd is None:
        return image.resize((side, side), _FILTERS[preprocessing.interpolation], box)
    left, top, right, bottom = box
    margin = _SUPPORT * max(1.0, (bottom - top) / side)
    first, last = max(0, floor(top - margin)), min(image.height, ceil(bottom + margin))
    # in two steps: resizing both ways at once, cykooz_resizer 4.0.1 reads beyond images that it enlarges
    narrowed = _resized(image, (side, last - first), (left, first, right, last), preprocessing)
    return _resized(narrowed, (side, side), (0, top - first, side, bottom - first), preprocessing)


def _resized(image: Image.Image, size: tuple[int, int], box: Box, preprocessing: Preprocessing) -> Image.Image:
    left, top, right, bottom = box
    crop_box = simd.CropBox(left, top, _extent(left, right, image.width), _extent(top, bottom, image.height))
    algorithm = simd.ResizeAlg.convolution(simd.FilterType[_SIMD_FILTERS[preprocessing.interpolation]])
    resized = Image.new("RGB", size)
    simd.Resizer().resize_pil(image, resized, simd.ResizeOptions(algorithm, crop_box=crop_box))
    return resized


def _extent(start: float, end: float, limit: int) -> float:
    """Rounded so that `start` and it together are no more than `limit`, which cykooz_resizer insists on."""
    extent = min(end, limit) - start
    return extent if start + extent <= limit else nextafter(extent, 0)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn what is stored by its EXIF orientation, 1 to 8."""
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB.

    Transparent pixels show white, what most viewers and pages put behind a picture; the colour stored under them is
    arbitrary. Integers wider than 8 bits are taken as 16 bits and divided by 256, where Pillow would clip them. Floats
    have no agreed range: they are taken as 0 to 255 and clipped, as Pillow does. Colour profiles are ignored, as
    torchvision does.
    """
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode == "La":  # Pillow converts premultiplied grey to LA alone
        image = image.convert("LA")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), _converted(image, "RGBA"))
    return _converted(image, "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # convert copies even when there is nothing to do
