"""How much of a file is looked at, and how much memory its pixels may take: a hostile one must not stop a server."""

import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from server.errors import Code, ServiceError

PIXEL_BYTES = 20
"""The most that a pixel takes at the peak of its decoding: a transparent WebP is there five times. `max_pixels` of them
bound the memory of every format."""
_JPEG_PIXEL_BYTES = 10
"""As decoded and as RGB, and once more while the end of a photo is looked for."""
_COEFFICIENT_BYTES = 2
"""A photo in several scans is kept as coefficients, in full size, until the last of them."""
MAX_JPEG_PIXELS = 200_000_000
"""Larger ones take too long, however little is kept: phones take 200 megapixels at most."""

_MAX_SCANS = 100
"""A JPEG scan of 30 bytes makes the decoder visit every pixel; encoders write about ten scans."""
_MAX_SCANNED_PIXELS = 2_500_000_000
"""Pixels of all scans together: 50 times 50 megapixels, or ten times more than 200."""

# Pillow reads what comes before the pixels in Python, holding the GIL, so a flood of tiny parts would stop the server.
_MAX_JPEG_SEGMENTS = 500
"""Cameras write under 50; a colour profile of 3 MB takes 50 more."""
_MAX_JPEG_PARSED_BYTES = 2**20
"""Exif is at most 64 KiB by its standard; of Photoshop's data Pillow parses every resource."""
MAX_READS = 50_000
"""Four a PNG chunk (encoders split the pixels into chunks of 8 KiB or more), two a GIF block."""
_MIN_SIDE = 64
"""A side counts as this many pixels or more: each row has its pointer and its padding, however short it is."""

_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_JPEG_BARE = {code & 0xFF for code, (_, _, handler) in JpegImagePlugin.MARKER.items() if handler is None}
"""Markers that Pillow takes to have no length after them."""


class BoundedReads(io.BytesIO):
    """A file that refuses to be read in endless small parts."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As of every file."""
        self.reads += 1
        bound(self.reads, MAX_READS, "the image has {} parts")
        return super().read(size)


def check_jpeg(data: bytes) -> int:
    """Refuse what would take long to open, or has more scans than a picture needs; return where the first begins."""
    # what looks like a scan, at even and odd places; if there are many, look closer: a video behind the photo has some
    pairs = (np.frombuffer(data, "<u2", (len(data) - odd) // 2, odd) for odd in (0, 1))
    usual = sum(np.count_nonzero(pair == 0xDAFF) for pair in pairs) <= _MAX_SCANS
    first, scans, parsed = len(data), 0, 0
    for segments, (kind, at, length) in enumerate(_markers(data, 2), 1):
        if kind == 0xDA and not scans:
            first = at
        if (kind == 0xDA and usual) or (kind == 0xD9 and scans):
            break
        scans += kind == 0xDA
        if data.startswith((b"Exif", b"Photoshop"), at + 4):
            parsed += length
        bound(scans, _MAX_SCANS, "the JPEG image has {} scans")
        bound(segments, _MAX_JPEG_SEGMENTS, "the JPEG image has {} segments")
        bound(parsed, _MAX_JPEG_PARSED_BYTES, "the JPEG image has {} bytes of Exif or Photoshop metadata")
    return first


def _markers(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Kind, place and length of each segment, and of the markers that stand alone."""
    while marker := _JPEG_MARKER.search(data, at):
        kind, at = data[marker.end() - 1], marker.end()
        length = 0 if kind in _JPEG_BARE else max(2, int.from_bytes(data[at : at + 2], "big"))
        yield kind, at - 2, length
        at += length


def _scans(image: JpegImageFile, data: bytes, first: int) -> int:
    """How many the decoder reads of a photo whose first one begins there."""
    if not image.info.get("progressive") and data[first + 4 : first + 5] == bytes((image.layers,)):
        return 1
    count = 0
    for segments, (kind, _, _) in enumerate(_markers(data, first), 1):
        if kind == 0xD9:
            break
        count += kind == 0xDA
        bound(segments, _MAX_JPEG_SEGMENTS, "the JPEG image has {} segments")
    return count


def bound(count: int, limit: int, text: str) -> None:
    """Refuse more than `limit` of something, which `text` names."""
    if count > limit:
        raise ServiceError(Code.BROKEN_IMAGE, f"{text.format(f'at least {count}')}; send one of at most {limit}")


def check_pixels(image: Image.Image, max_pixels: int) -> None:
    """Refuse an opened image of more than `max_pixels`."""
    pixels = _counted(image.size)
    if isinstance(image, TiffImageFile):  # decodes whole tiles, however small the picture
        width, height = (image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
        pixels = max(pixels, int(width) * int(height))
    if pixels > max_pixels:
        raise ServiceError(
            Code.TOO_MANY_PIXELS,
            f"the image counts as {pixels} pixels, since each side counts as {_MIN_SIDE} or more;"
            f" send one of at most {max_pixels}",
        )


def check_jpeg_pixels(image: JpegImageFile, full: tuple[int, int], data: bytes, first: int, max_pixels: int) -> None:
    """Refuse a photo that takes more memory than `max_pixels` of any other image, or too long.

    Args:
        image: opened, of the size in which it will be decoded.
        full: its width and height in the file.
        data: the file.
        first: where its first scan begins.
        max_pixels: PIXEL_BYTES each.
    """
    pixels, scans = _counted(full), _scans(image, data, first)
    needed = _counted(image.size) * _JPEG_PIXEL_BYTES
    if scans > 1:
        blocks = [(down, across) for _, down, across, _ in image.layer]
        most = max(down for down, _ in blocks) * max(across for _, across in blocks)
        needed += pixels * sum(down * across for down, across in blocks) // max(1, most) * _COEFFICIENT_BYTES
    if needed > max_pixels * PIXEL_BYTES:
        raise ServiceError(
            Code.TOO_MANY_PIXELS,
            f"decoding the JPEG image takes {needed} bytes of memory; send a smaller one, that takes at most "
            f"{max_pixels * PIXEL_BYTES}",
        )
    if pixels > MAX_JPEG_PIXELS or pixels * scans > _MAX_SCANNED_PIXELS:
        raise ServiceError(
            Code.TOO_MANY_PIXELS,
            f"the JPEG image has {pixels} pixels and {scans} scans; send one of at most {MAX_JPEG_PIXELS} pixels, and "
            f"{_MAX_SCANNED_PIXELS} in all scans together",
        )


def _counted(size: tuple[int, int]) -> int:
    width, height = size
    return max(width, _MIN_SIDE) * max(height, _MIN_SIDE)
