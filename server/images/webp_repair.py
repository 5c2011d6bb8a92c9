"""Repairs WebP pictures that Pillow refuses, or shows wrongly, although all their pixels are there."""

import struct
from collections.abc import Iterator

from server.images.orientation import exif, orientation

_PICTURE = (b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF")
_ALPHA, _EXIF, _ANIMATED = 0x10, 0x08, 0x02
"""Flags of the extended header (WebP container specification)."""
_MAX_CHUNKS = 1000


def without_metadata(data: bytes) -> bytes | None:
    """The picture, or an animation's complete frames, and the orientation; None: there is no picture.

    Sizes are computed anew, so anything after the last complete chunk is dropped.
    """
    head, kept, turned = b"", [], 1
    for kind, body in _chunks(data):
        if kind == b"VP8X" and len(body) >= 10:
            head = body[:10]
        elif kind == b"EXIF":
            turned = orientation(body)
        elif kind in _PICTURE:
            kept.append(_written(kind, body))
    if not kept:
        return None
    if head:
        flags = head[0] & (_ALPHA | _ANIMATED) | (_EXIF if turned != 1 else 0)
        kept.insert(0, _written(b"VP8X", bytes((flags,)) + head[1:]))
        if turned != 1:
            kept.append(_written(b"EXIF", exif(turned)))
    chunks = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def length(data: bytes) -> int:
    """Length of the file in bytes, according to its header."""
    return 8 + int.from_bytes(data[4:8], "little")


def covered(data: bytes) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of an animation's first frame; None: this is not an animation."""
    if data[12:16] != b"VP8X" or not data[20:21] or not data[20] & _ANIMATED:
        return None
    for kind, body in _chunks(data):
        if kind == b"ANMF" and len(body) >= 12:
            left, top, width, height = (int.from_bytes(body[at : at + 3], "little") for at in (0, 3, 6, 9))
            return 2 * left, 2 * top, 2 * left + width + 1, 2 * top + height + 1
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each complete chunk."""
    at = 12
    for _ in range(_MAX_CHUNKS):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if at + size > len(data):
            return
        yield kind, data[at : at + size]
        at += size + size % 2


def _written(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
