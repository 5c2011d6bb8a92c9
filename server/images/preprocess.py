"""From a decoded image of any size and mode to the network's `crop` x `crop` RGB pixels, as torchvision does it."""

from PIL import Image

from models.manifest import Preprocessing

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

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
_MIRRORED_X = {2, 3, 7, 8}
_MIRRORED_Y = {3, 4, 6, 7}


def crop_box(size: tuple[int, int], preprocessing: Preprocessing, orientation: int = 1) -> Box:
    """The part of a stored image of `size` (width, height) that resize and centre crop keep.

    The offsets count from the upright picture's left and top, and they round half to even: where `orientation` mirrors
    an axis, the stored picture's odd pixel is on the other side.
    """
    crop, short_side = preprocessing.crop, min(size)

    def interval(side: int, *, mirrored: bool) -> tuple[float, float]:
        resized = int(preprocessing.resize * side / short_side)
        start = round((resized - crop) / 2)
        if mirrored:
            start = resized - crop - start
        return start * side / resized, (start + crop) * side / resized

    left, right = interval(size[0], mirrored=orientation in _MIRRORED_X)
    top, bottom = interval(size[1], mirrored=orientation in _MIRRORED_Y)
    return left, top, right, bottom


def preprocess(image: Image.Image, box: Box, preprocessing: Preprocessing, orientation: int = 1) -> Image.Image:
    """The `box` of a loaded image as an upright RGB image of `crop` x `crop`.

    Resampling the box alone gives the pixels of resize-then-crop, up to rounding, and needs no memory for the rest; a
    box of `crop` x `crop` whole pixels passes through unchanged. Pillow runs the cheaper of its two passes first, which
    may be another one for the box than for the whole image: then bicubic differs by some levels at sharp edges.
    Turning the few pixels that are left costs less than turning the photo.
    """
    size = (preprocessing.crop, preprocessing.crop)
    pixels = _rgb(image).resize(size, _FILTERS[preprocessing.interpolation], box)
    return pixels.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else pixels


def _rgb(image: Image.Image) -> Image.Image:
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
