"""Repairs JPEG photos that Pillow refuses although all their pixels are there."""

import re
from typing import NamedTuple

from server.images.orientation import EXIF_HEAD, exif, orientation

END = b"\xff\xd9"
FILLER = bytes(range(0xFE, 0, -5)) * 20
"""Arbitrary entropy-coded data to append to a photo: pixels that it changes were missing from the file. It begins with
ones, since libjpeg itself fills a truncated photo with zeros."""

_PADDING = bytes(16)

_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""All markers but reserved ones and restarts, of which there may be many (ITU-T T.81, B.1.1.3)."""
_START = 0xD8
"""Start of image: the marker without a length after it."""
_TABLES_AND_FRAMES = {0xC4, 0xCC, 0xDB, 0xDD, *range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC)}
_JPEG_LS = 0xF7
_FRAMES = _TABLES_AND_FRAMES - {0xC4, 0xCC, 0xDB, 0xDD} | {_JPEG_LS}
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_VARIANTS = {
    0xC3: "lossless JPEG",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG"),
    0xC9: "arithmetic-coded JPEG",
    0xCA: "arithmetic-coded JPEG",
    0xCB: "lossless JPEG",
    _JPEG_LS: "JPEG-LS",
}
_COLOURS = (1, 3, 4)
"""Numbers of components: of grey, of YCbCr or RGB, and of CMYK."""


class _Segment(NamedTuple):
    kind: int
    body: bytes
    end: int


def without_metadata(data: bytes) -> bytes | None:
    """The photo reduced to its pixels and their orientation; None: these are damaged, too.

    Tables, frames and scans are kept, and of the application segments those that libjpeg reads: JFIF's, and Adobe's
    colour transform. Junk between segments is skipped up to the next marker, as libjpeg does.
    """
    kept, turned = [data[:2]], 1
    for segment in _segments(data):
        kind, body = segment.kind, segment.body
        if kind == 0xDA:
            if turned != 1:
                kept.insert(1, _written(_APP1, EXIF_HEAD + exif(turned)))
            return b"".join((*kept, _written(kind, body), data[segment.end :]))
        if kind == _APP1 and body.startswith(EXIF_HEAD):
            turned = orientation(body)
        jfif = kind == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14
        adobe = kind == _APP14 and body.startswith(b"Adobe") and len(body) >= 12
        if jfif or adobe or kind in _TABLES_AND_FRAMES:
            kept.append(_written(kind, body))
    return None


def without_end(data: bytes, first: int) -> bytes | None:
    """The photo without its end, if the end marker is missing or follows zeros instead of pixels; None: neither.

    `first` is the offset of its first scan.
    """
    if data.rfind(END) < first:
        return _without_padding(data.rstrip(b"\xff"))  # 0xFF may be the first half of the end marker
    bare = data.removesuffix(END)
    if not bare.endswith(_PADDING) or (unpadded := _without_padding(bare)) == bare:
        return None
    return unpadded


def _without_padding(data: bytes) -> bytes:
    """A photo without the zeros that fill a truncated file.

    Zeros decode as the first Huffman code of each table. If that code is the end of a block, many zeros may be a plain
    area of the picture, so they stay, as they do in a progressive photo. Otherwise real data ends with one zero byte at
    most, after 0xFF.
    """
    if not data.endswith(_PADDING):
        return data
    plain = []
    for kind, body, _ in _segments(data):
        if kind in (0xC2, 0xCA):
            return data
        at = 0
        while kind == 0xC4 and at + 17 < len(body):
            if body[at] >> 4:  # a table for all but the first coefficient of a block
                plain.append(body[at + 17] == 0)
            at += 17 + sum(body[at + 1 : at + 17])
    return data if plain and all(plain) else data.rstrip(b"\0") + bytes(2)


def variant(data: bytes) -> str | None:
    """Name of the kind of JPEG that this is, if it is not supported; None: it is."""
    for segment in _segments(data):
        kind, body = segment.kind, segment.body
        if kind in _FRAMES and len(body) >= 6:
            if body[1:3] == bytes(2):
                return "JPEG that states its height after its pixels (DNL)"
            if body[0] != 8 and kind not in _VARIANTS:
                return f"JPEG of {body[0]} bits a sample"
            if body[5] not in _COLOURS:
                return f"JPEG of {body[5]} components"
            return _VARIANTS.get(kind)
    return None


def frame_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a photo, or of a JPEG strip or tile of a TIFF; None: no header before the first scan."""
    for kind, body, _ in _segments(data):
        if kind in _FRAMES and len(body) >= 6:
            return int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
    return None


def complete_scans(data: bytes) -> bool:
    """Whether the scans of a progressive photo, as far as they begin, cover all bits of all its coefficients.

    See ITU-T T.81, G.1.1.1.
    """
    wanted: dict[int, int] = {}
    told: dict[tuple[int, int], int] = {}
    at = 2
    while found := _MARKER.search(data, at):
        kind = data[found.end() - 1]
        at = found.end()
        if kind == _START:
            continue
        if kind == END[1]:
            break
        length = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + length]
        at += max(2, length)
        if kind in (0xC2, 0xCA):
            wanted = {body[place]: 64 for place in range(6, len(body) - 2, 3)}
        elif kind == 0xDA and len(body) >= 4:
            first, last, bits = body[-3], min(63, body[-2]), body[-1] & 15
            told |= {(body[1 + 2 * index], each): bits for index in range(body[0]) for each in range(first, last + 1)}
    return all(told.get((component, each)) == 0 for component, count in wanted.items() for each in range(count))


def _segments(data: bytes) -> list[_Segment]:
    """The segments up to and including the first scan's header; fewer if the file ends or a length is impossible."""
    found: list[_Segment] = []
    at = 2
    while marker := _MARKER.search(data, at):
        kind, at = data[marker.end() - 1], marker.end()
        if kind == _START:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if kind == END[1] or length < 2 or at + length > len(data):
            break
        found.append(_Segment(kind, data[at + 2 : at + length], at + length))
        if kind == 0xDA:
            break
        at += length
    return found


def _written(kind: int, body: bytes) -> bytes:
    return bytes((0xFF, kind)) + (len(body) + 2).to_bytes(2, "big") + body
