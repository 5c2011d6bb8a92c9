"""Compressed image to network input: the only place where Pillow meets bytes from outside."""

import io
import re
import struct
import warnings
from collections.abc import Iterator, Sequence

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

from models.manifest import Crop, CropCount, Preprocessing
from server.errors import Code, ServiceError
from server.images.jpeg import JpegDecoder
from server.images.preprocess import crop_boxes, resample, rgb, upright

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
"""A JPEG scan of 30 bytes makes the decoder visit every pixel; encoders write about ten scans."""

# Pillow reads what comes before the pixels in Python, holding the GIL, so a flood of tiny parts would stop the server.
_MAX_JPEG_SEGMENTS = 500
"""Cameras write under 50; a colour profile of 3 MB takes 50 more."""
_MAX_JPEG_PARSED_BYTES = 2**20
"""Exif is at most 64 KiB by its standard; of Photoshop's data Pillow parses every resource."""
_MAX_TIFF_TAGS = 1000
_MAX_TIFF_VALUES = 50_000
"""Numbers in all tags: two a strip or tile, each of which Pillow decodes on its own."""
_MAX_READS = 50_000
"""Four a PNG chunk (encoders split the pixels into chunks of 8 KiB or more), two a GIF block, one a TIFF strip."""
_MAX_AVIF_BOXES = 1000
_MAX_AVIF_INDEX_BYTES = 2**17
"""Some 50 bytes an item; a picture has a few, a large one an item for each tile of its grid."""
_MIN_SIDE = 64
"""A side counts as this many pixels or more: each row has its pointer and its padding, however short it is."""

_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_JPEG_BARE = {code & 0xFF for code, (_, _, handler) in JpegImagePlugin.MARKER.items() if handler is None}
"""Markers that Pillow takes to have no length after them."""

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the images decoded at one time share the CPUs already
# Pillow puts parts of an upload into its warnings, and Python keeps every warning's text for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(
    data: bytes | memoryview,
    preprocessing: Preprocessing,
    outs: Sequence[npt.NDArray[np.uint8]],
    *,
    max_pixels: int,
    jpeg_decoder: JpegDecoder | None = None,
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
        max_pixels: largest width x height, each counted as 64 or more; checked before any pixel is decoded. Opening a
            GIF or WebP may allocate its canvas before that, so Pillow's own limit, 2 * Image.MAX_IMAGE_PIXELS (179
            million), stays in force.
        jpeg_decoder: is asked first; None: all is Pillow's.

    Raises:
        ServiceError: EMPTY_BODY, NOT_AN_IMAGE (none of FORMATS, or a run-length compressed BMP), TOO_MANY_PIXELS, or
            BROKEN_IMAGE.
    """
    if not data:
        raise ServiceError(Code.EMPTY_BODY, "the body is empty; send an image")
    data = bytes(data)
    format_name = _format(data)
    try:
        crops = _crops(data, format_name, preprocessing, 10 if len(outs) == 10 else 1, max_pixels, jpeg_decoder)
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
    data: bytes,
    format_name: str,
    preprocessing: Preprocessing,
    count: CropCount,
    max_pixels: int,
    jpeg_decoder: JpegDecoder | None,
) -> list[npt.NDArray[np.uint8]]:
    _check_structure(data, format_name)
    with Image.open(_BoundedReads(data), formats=(format_name,)) as image:
        _check_pixels(image, max_pixels)
        size = image.size
        if jpeg_decoder is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
            orientation = _orientation(image)
            parts = crop_boxes(size, preprocessing, orientation, count)
            pixels = jpeg_decoder.crops(data, image, [box for _, box in parts], preprocessing)
            if pixels is not None:
                stored = map(Image.fromarray, pixels)
                return [_finished(each, orientation, crop) for each, (crop, _) in zip(stored, parts, strict=True)]
        side = int(DRAFT_MARGIN * preprocessing.resize)
        draft = image.draft(None, (side, side))  # None but for JPEG
        scale = draft[1][2] / size[0] if draft else 1.0
        image.load()
        orientation = _orientation(image)
        picture = rgb(image)
        crops = []
        for crop, (left, top, right, bottom) in crop_boxes(size, preprocessing, orientation, count):
            box = left * scale, top * scale, right * scale, bottom * scale
            crops.append(_finished(resample(picture, box, preprocessing), orientation, crop))
        return crops


def _finished(pixels: Image.Image, orientation: int, crop: Crop) -> npt.NDArray[np.uint8]:
    """Turned at last: a crop has fewer pixels than the photo."""
    turned = np.asarray(upright(pixels, orientation))
    return turned[:, ::-1] if crop.mirrored else turned


class _BoundedReads(io.BytesIO):
    """A file that refuses to be read in endless small parts."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        _bound(self.reads, _MAX_READS, "the image has {} parts")
        return super().read(size)


def _check_structure(data: bytes, format_name: str) -> None:
    """Refuse a file that Pillow would take long to open, or that has more JPEG scans than a picture needs."""
    match format_name:
        case "JPEG":
            _check_jpeg(data)
        case "TIFF":
            _check_tiff(data)
        case "AVIF":
            _check_avif(data)
        case "BMP" if int.from_bytes(data[14:18], "little") > 12 and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
            # Pillow's decoder for it is written in Python
            raise ServiceError(
                Code.NOT_AN_IMAGE, "run-length compressed BMP is not accepted; send the BMP uncompressed, or as PNG"
            )


def _check_jpeg(data: bytes) -> None:
    # what looks like a scan, at even and odd places; if there are many, look closer: a video behind the photo has some
    pairs = (np.frombuffer(data, "<u2", (len(data) - odd) // 2, odd) for odd in (0, 1))
    usual = sum(np.count_nonzero(pair == 0xDAFF) for pair in pairs) <= _MAX_SCANS
    at, segments, scans, parsed = 2, 0, 0, 0
    while marker := _JPEG_MARKER.search(data, at):
        kind = data[marker.end() - 1]
        if (kind == 0xDA and usual) or (kind == 0xD9 and scans):
            break
        segments += 1
        scans += kind == 0xDA
        at = marker.end()
        if kind not in _JPEG_BARE:
            length = max(2, int.from_bytes(data[at : at + 2], "big"))
            if data.startswith((b"Exif", b"Photoshop"), at + 2):
                parsed += length
            at += length
        _bound(scans, _MAX_SCANS, "the JPEG image has {} scans")
        _bound(segments, _MAX_JPEG_SEGMENTS, "the JPEG image has {} segments")
        _bound(parsed, _MAX_JPEG_PARSED_BYTES, "the JPEG image has {} bytes of Exif or Photoshop metadata")


def _check_tiff(data: bytes) -> None:
    """The first picture's directory."""
    order = "<" if data.startswith(b"II") else ">"
    big = 43 in data[2:4]  # BigTIFF
    (at,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
    (tags,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    _bound(tags, _MAX_TIFF_TAGS, "the TIFF image has {} tags")
    entry = struct.Struct(order + ("HHQ8x" if big else "HHL4x"))
    at += 8 if big else 2
    entries = entry.iter_unpack(data[at : at + tags * entry.size])
    values = sum(count for _, kind, count in entries if kind not in (1, 2, 7))  # bytes, text, undefined: kept whole
    _bound(values, _MAX_TIFF_VALUES, "the TIFF image has {} numbers in its tags")


def _check_avif(data: bytes) -> None:
    """libavif looks each item up among all others."""
    index_bytes = 0
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, inner_start, inner_end in _boxes(data, start + 4, end):
            if inner == b"iprp":  # all but the properties themselves, among them colour profiles
                properties = _boxes(data, inner_start, inner_end)
                index_bytes += sum(stop - begin for name, begin, stop in properties if name != b"ipco")
            elif inner != b"idat":
                index_bytes += inner_end - inner_start
    _bound(index_bytes, _MAX_AVIF_INDEX_BYTES, "the AVIF image has {} bytes of item index")


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the content of each box (ISO/IEC 14496-12, 4.2)."""
    boxes = 0
    while at + 8 <= end:
        boxes += 1
        _bound(boxes, _MAX_AVIF_BOXES, "the AVIF image has {} boxes")
        size, start = int.from_bytes(data[at : at + 4], "big"), at + 8
        if size == 1:
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        stop = min(end, at + size) if size else end
        yield data[at + 4 : at + 8], start, max(start, stop)
        at = max(start, stop)


def _bound(count: int, limit: int, text: str) -> None:
    if count > limit:
        raise ServiceError(Code.BROKEN_IMAGE, f"{text.format(f'at least {count}')}; send one of at most {limit}")


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    """Refuse an opened image that would take too much memory or time to decode."""
    pixels = max(image.width, _MIN_SIDE) * max(image.height, _MIN_SIDE)
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # decodes whole tiles, however small the picture
        tile_width, tile_height = (
            image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
        )
        pixels = max(pixels, int(tile_width) * int(tile_height))
    if pixels > max_pixels:
        raise ServiceError(
            Code.TOO_MANY_PIXELS,
            f"the image counts as {pixels} pixels, a side being {_MIN_SIDE} or more; send one of at most {max_pixels}",
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image, or a JPEG that is open, 1 to 8; 1 where there is none.

    TIFF images come upright from Pillow.
    """
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # malformed metadata is no reason to refuse a picture
        return 1
