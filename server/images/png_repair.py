"""PNG pictures that Pillow does not open, or shows wrongly, though no bit of their pixels is missing."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from server.errors import Code, ServiceError
from server.images.formats import incomplete
from server.images.orientation import exif, orientation
from server.images.preprocess import rgb

_MAGIC = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_TRANSPARENT_BYTES = {0: 2, 2: 6, 3: 1}
"""The least that tRNS has, by colour type: a grey level, a colour, or the palette's first alpha."""
_TRUE_COLOUR_OR_GREY = (0, 2)
_PALETTE = 3
_PADDING = bytes(16)
_COMPRESSED = (b"iCCP", b"iTXt", b"zTXt")
_MAX_CHUNKS = 12_500
"""A quarter of the reads that a decoder is allowed, which are four a chunk."""
_PIECE_BYTES = 2**20
_HOSTILE_BYTES = 2**15
"""From fewer no colour profile or text unpacks to more than the mebibyte that Pillow allows."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Left, top, and distances across and down of each pass (PNG specification, 8.2)."""


class _Chunk(NamedTuple):
    kind: bytes
    body: bytes
    whole: bool  # its length and checksum are right


class _Header(NamedTuple):
    width: int
    height: int
    depth: int
    colour: int
    compression: int
    filters: int
    interlaced: int

    def row_bytes(self, width: int) -> int:
        """Of one row, with the byte that names its filter."""
        return 1 + (width * self.depth * _CHANNELS.get(self.colour, 1) + 7) // 8

    def passes(self) -> list[tuple[int, int]]:
        """Columns and rows of each pass; of what is not interlaced there is one."""
        if not self.interlaced:
            return [(self.width, self.height)]
        sizes = [
            (-((left - self.width) // across), -((top - self.height) // down)) for left, top, across, down in _ADAM7
        ]
        return [(columns, rows) for columns, rows in sizes if columns > 0 and rows > 0]


class Mended(NamedTuple):
    """A picture without metadata, and how much of it there is."""

    data: bytes
    share: float  # of its rows, 0 to 1


def check(data: bytes, max_pixels: int) -> None:
    """Refuse what decoders understand in different ways: Pillow takes the last of several, others the first or none.

    Raises:
        ServiceError: BROKEN_IMAGE, there are several headers or palettes, or a palette that is needed has no colours;
            or rows are missing, though zeros stand in their place, which may be unpacked, too.
    """
    before = _before_pixels(data)
    palettes = [length for kind, length in before if kind == b"PLTE"]
    headers = sum(kind == b"IHDR" for kind, _ in before)
    if headers > 1 or (data[25:26] == bytes((_PALETTE,)) and (len(palettes) != 1 or not palettes[0])):
        raise ServiceError(Code.BROKEN_IMAGE, "the PNG image must have one header, and one palette if it needs any")
    if data.endswith(_PADDING):
        there = without_metadata(data.rstrip(b"\0"), max_pixels)
        if there is not None and there.share < 1:
            raise incomplete("PNG", there.share)


def _before_pixels(data: bytes) -> list[tuple[bytes, int]]:
    """Kind and length of each chunk before the first of pixels."""
    at = len(_MAGIC)
    found: list[tuple[bytes, int]] = []
    while len(found) < _MAX_CHUNKS and (kind := data[at + 4 : at + 8]) not in (b"IDAT", b""):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((kind, length))
        at += 12 + length
    return found


def is_bomb(error: Exception, data: bytes) -> bool:
    """Whether Pillow refused to unpack metadata, which are not damaged then, but hostile: little unpacks
    to much.

    What is merely large, as colour profiles of printers are, is left out like other metadata.
    """
    if not isinstance(error, ValueError) or "too large" not in str(error):
        return isinstance(error, ValueError) and "memory" in str(error)
    return max(len(body) for kind, body, _ in _chunks(data) if kind in _COMPRESSED) < _HOSTILE_BYTES


def without_metadata(data: bytes, max_pixels: int) -> Mended | None:
    """Nothing but what tells the pixels and how they are turned; None: even that cannot be found.

    Ancillary chunks are left out, with the exception of a tRNS that is as it must be (of a damaged one browsers, too,
    take no notice), and so is the palette that a picture of true colour suggests. A missing end is put there.
    Rows are not counted of pictures of more than `max_pixels`.
    """
    header: _Header | None = None
    palette, transparent, turned = b"", b"", 1
    parts: list[bytes] = []
    for kind, body, whole in _chunks(data):
        match kind:
            case b"IHDR" if header is None and whole and len(body) == 13:
                header = _Header(*struct.unpack(">IIBBBBB", body))
            case b"PLTE" if header is not None and header.colour == _PALETTE and whole:
                palette = _written(kind, body)
            case b"tRNS" if header is not None and whole and not parts:
                if len(body) >= _TRANSPARENT_BYTES.get(header.colour, len(body) + 1):
                    transparent = _written(kind, body)
            case b"eXIf" if whole:
                turned = orientation(body)
            case b"IDAT":
                parts.append(body)
            case b"IEND":
                break
    if header is None or not parts:
        return None
    packed = b"".join(parts)
    share = 1.0
    if 0 < header.width * header.height <= max_pixels:
        packed, share = _measured(header, packed)
    first = _written(b"IHDR", struct.pack(">IIBBBBB", *header))
    turning = _written(b"eXIf", exif(turned)) if turned != 1 else b""
    end = _written(b"IEND", b"")
    return Mended(b"".join((_MAGIC, first, palette, transparent, turning, _written(b"IDAT", packed), end)), share)


def _measured(header: _Header, packed: bytes) -> tuple[bytes, float]:
    """The rows with their checksum made right, if they are all there, and how much there is of them."""
    wanted = sum(rows * header.row_bytes(columns) for columns, rows in header.passes())
    inflating, found, checksum = zlib.decompressobj(-zlib.MAX_WBITS), 0, 1  # behind zlib's own two bytes
    rest = packed[2:]
    try:
        while not inflating.eof and found <= wanted and (piece := inflating.decompress(rest, _PIECE_BYTES)):
            found += len(piece)
            checksum = zlib.adler32(piece, checksum)
            rest = inflating.unconsumed_tail
    except zlib.error:
        return packed, 1.0  # damaged, and not for want of an end: whoever decodes it says so
    if inflating.eof:
        packed = packed[: len(packed) - len(inflating.unused_data)] + checksum.to_bytes(4, "big")
    return packed, min(1.0, found / wanted)


def _chunks(data: bytes) -> Iterator[_Chunk]:
    at = len(_MAGIC)
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        body, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        yield _Chunk(kind, body, whole=checksum == zlib.crc32(kind + body).to_bytes(4, "big"))
        at += 12 + length


def _written(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_transparency(image: PngImageFile, data: bytes) -> Image.Image:
    """A loaded picture with what its file `data` says to be transparent.

    Pillow compares what is left of a sample in 8 bits with a colour in the file's depth. What is the same in the upper
    8 of 16 bits need not be the same colour.
    """
    colour = image.info.get("transparency")
    depth, kind = data[24], data[25]
    if kind == _PALETTE and colour is not None:
        kinds = [each for each, _ in _before_pixels(data)]
        if kinds.index(b"tRNS") < kinds.index(b"PLTE"):  # browsers take no notice of it
            del image.info["transparency"]
    if colour is None or kind not in _TRUE_COLOUR_OR_GREY or depth in (1, 8):
        return image
    if depth < 8:
        image.info["transparency"] = (colour & (2**depth - 1)) * 255 // (2**depth - 1)
        return image
    del image.info["transparency"]
    if kind == 0:
        visible = np.asarray(image) != colour
    else:
        lower = PngImageFile(io.BytesIO(data))
        lower.tile = [lower.tile[0]._replace(args="RGB;16L")]  # which takes the second byte of each sample
        lower.load()
        parts = np.asarray(image), np.asarray(lower)
        visible = np.any(
            [part != [each >> shift & 255 for each in colour] for part, shift in zip(parts, (8, 0), strict=True)],
            axis=(0, 3),
        )
    picture = rgb(image)
    picture.putalpha(Image.fromarray(visible.astype(np.uint8) * 255))
    return picture
