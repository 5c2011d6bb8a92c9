"""Repairs PNG pictures that Pillow refuses, or shows wrongly, although all their pixels are there."""

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
"""Least length of a tRNS chunk, by colour type: a grey level, a colour, or the palette's first alpha."""
_TRUE_COLOUR_OR_GREY = (0, 2)
_PALETTE = 3
_PADDING = bytes(16)
_COMPRESSED = (b"iCCP", b"iTXt", b"zTXt")
_MAX_CHUNKS = 12_500
"""A quarter of `bounds.MAX_READS`, as a chunk takes four reads."""
_PIECE_BYTES = 2**20
_HOSTILE_BYTES = 2**15
"""No honest colour profile or text of fewer bytes unpacks to more than the mebibyte that Pillow allows."""
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
        """Bytes of one row, including the byte that names its filter."""
        return 1 + (width * self.depth * _CHANNELS.get(self.colour, 1) + 7) // 8

    def passes(self) -> list[tuple[int, int]]:
        """Columns and rows of each pass; a picture that is not interlaced has one pass."""
        if not self.interlaced:
            return [(self.width, self.height)]
        sizes = [
            (-((left - self.width) // across), -((top - self.height) // down)) for left, top, across, down in _ADAM7
        ]
        return [(columns, rows) for columns, rows in sizes if columns > 0 and rows > 0]


class Mended(NamedTuple):
    """A picture without metadata, and the share of it that the file contains."""

    data: bytes
    share: float  # of its rows, 0 to 1


def check(data: bytes, max_pixels: int) -> None:
    """Refuse files that decoders read differently: of several headers, Pillow takes the last, others the first or none.

    Raises:
        ServiceError: BROKEN_IMAGE, there are several headers or palettes, or a needed palette has no colours; or rows
            are missing and zeros fill the file, which could also be unpacked.
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
    """Kind and length of each chunk before the first IDAT."""
    at = len(_MAGIC)
    found: list[tuple[bytes, int]] = []
    while len(found) < _MAX_CHUNKS and (kind := data[at + 4 : at + 8]) not in (b"IDAT", b""):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((kind, length))
        at += 12 + length
    return found


def is_bomb(error: Exception, data: bytes) -> bool:
    """Whether Pillow's error means hostile metadata, of which few bytes unpack to many.

    Metadata that is merely large, such as a printer's colour profile, is left out like other metadata.
    """
    if not isinstance(error, ValueError) or "too large" not in str(error):
        return isinstance(error, ValueError) and "memory" in str(error)
    return max(len(body) for kind, body, _ in _chunks(data) if kind in _COMPRESSED) < _HOSTILE_BYTES


def without_metadata(data: bytes, max_pixels: int) -> Mended | None:
    """The picture reduced to its pixels and their orientation; None: these cannot be found.

    Ancillary chunks are left out, except a valid tRNS (browsers ignore an invalid one, too), and so is the palette that
    a true-colour picture suggests. A missing end is added. The rows of pictures larger than `max_pixels` are not
    counted.
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
    """The compressed rows, with a correct checksum if they are complete, and the share of them that is there."""
    wanted = sum(rows * header.row_bytes(columns) for columns, rows in header.passes())
    inflating, found, checksum = zlib.decompressobj(-zlib.MAX_WBITS), 0, 1  # raw deflate, after zlib's two-byte header
    rest = packed[2:]
    try:
        while not inflating.eof and found <= wanted and (piece := inflating.decompress(rest, _PIECE_BYTES)):
            found += len(piece)
            checksum = zlib.adler32(piece, checksum)
            rest = inflating.unconsumed_tail
    except zlib.error:
        return packed, 1.0  # damaged, not truncated: the decoder will report it
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
    """Correct the transparency of a loaded picture; `data` is its file.

    Pillow compares samples reduced to 8 bits with a transparent colour of the file's depth. Moreover, 16-bit samples
    with equal upper 8 bits may be different colours.
    """
    colour = image.info.get("transparency")
    depth, kind = data[24], data[25]
    if kind == _PALETTE and colour is not None:
        kinds = [each for each, _ in _before_pixels(data)]
        if kinds.index(b"tRNS") < kinds.index(b"PLTE"):  # browsers ignore such a tRNS
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
        lower.tile = [lower.tile[0]._replace(args="RGB;16L")]  # reads the second byte of each sample
        lower.load()
        parts = np.asarray(image), np.asarray(lower)
        visible = np.any(
            [part != [each >> shift & 255 for each in colour] for part, shift in zip(parts, (8, 0), strict=True)],
            axis=(0, 3),
        )
    picture = rgb(image)
    picture.putalpha(Image.fromarray(visible.astype(np.uint8) * 255))
    return picture
