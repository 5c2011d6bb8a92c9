"""Limits on the parsed parts of a file and the memory of its pixels, so that no hostile file stops the server."""

import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from server.errors import Code, ServiceError

PIXEL_BYTES = 20
"""Most memory per pixel at the peak of decoding: a transparent WebP is in memory five times. `max_pixels` times this
bounds the memory of every format."""
_JPEG_PIXEL_BYTES = 10
"""A photo as decoded and as RGB, and a second copy while its missing end is examined."""
_COEFFICIENT_BYTES = 2
"""The decoder keeps a photo in several scans as coefficients, in full size, until the last scan."""
MAX_JPEG_PIXELS = 200_000_000
"""Larger photos take too long, however small they are decoded: phones take 200 megapixels at most."""

_MAX_SCANS = 100
"""A JPEG scan of 30 bytes makes the decoder visit every pixel; encoders write about ten scans."""
_MAX_SCANNED_PIXELS = 2_500_000_000
"""Pixels of all scans together: 50 scans of 50 megapixels, or over ten of 200."""

# Pillow parses all that precedes the pixels in Python, holding the GIL, so a flood of tiny parts would stop the server.
_MAX_JPEG_SEGMENTS = 500
"""Cameras write under 50; a colour profile of 3 MB takes 50 more."""
_MAX_JPEG_PARSED_BYTES = 2**20
"""The standard limits Exif to 64 KiB; of Photoshop's data Pillow parses every resource."""
MAX_READS = 50_000
"""A PNG chunk takes four reads (encoders split the pixels into chunks of 8 KiB or more), a GIF block two."""
_MIN_SIDE = 64
"""A side counts as at least this many pixels, as every row, however short, has a pointer and padding."""

_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_JPEG_BARE = {code & 0xFF for code, (_, _, handler) in JpegImagePlugin.MARKER.items() if handler is None}
"""Markers after which Pillow expects no length."""


class BoundedReads(io.BytesIO):
    """A file in memory that refuses more than MAX_READS reads."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """See io.BytesIO."""
        self.reads += 1
        bound(self.reads, MAX_READS, "the image has {} parts")
        return super().read(size)


def check_jpeg(data: bytes) -> int:
    """Refuse a photo that would take long to open, or has too many scans; return the offset of its first scan."""
    # Count what looks like a scan, at even and odd offsets. If there are many, parse: a video behind a photo has some.
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
    """Kind, offset and length of each segment, and of markers without one."""
    while marker := _JPEG_MARKER.search(data, at):
        kind, at = data[marker.end() - 1], marker.end()
        length = 0 if kind in _JPEG_BARE else max(2, int.from_bytes(data[at : at + 2], "big"))
        yield kind, at - 2, length
        at += length


def _scans(image: JpegImageFile, data: bytes, first: int) -> int:
    """Number of scans that the decoder reads in a photo; `first` is the offset of the first."""
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
    """Refuse a `count` above `limit`; `text` says what is counted."""
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
    """Refuse a photo whose decoding takes more memory than `max_pixels` of another format may, or too long.

    Args:
        image: the opened photo, with the size in which it will be decoded.
        full: its width and height in the file.
        data: the file.
        first: offset of its first scan.
        max_pixels: the limit, at PIXEL_BYTES each.
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
            f"decoding the JPEG image takes {needed} bytes of memory; send a smaller one, which takes at most "
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
