"""Reads a picture's orientation from its EXIF data alone, as browsers do; XMP may contradict it."""

import struct
from contextlib import suppress

from PIL import ExifTags

EXIF_HEAD = b"Exif\0\0"
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_SHORT = 3


def orientation(exif: bytes | None) -> int:
    """EXIF orientation (CIPA DC-008, tag 0x0112), 1 to 8; 1 if it is missing, or `exif` cannot be read.

    A tag that does not have the standard's type is ignored, as browsers do.
    """
    data = (exif or b"").removeprefix(EXIF_HEAD)
    order = _ORDERS.get(data[:4])
    if order is None:
        return 1
    with suppress(struct.error):  # a picture with malformed metadata is accepted
        (at,) = struct.unpack_from(f"{order}L", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        entry = struct.Struct(f"{order}HHLH")
        for index in range(count):
            tag, kind, values, value = entry.unpack_from(data, at + 2 + 12 * index)
            if tag == ExifTags.Base.Orientation:
                return value if (kind, values) == (_SHORT, 1) and 1 <= value <= 8 else 1
    return 1


def exif(value: int) -> bytes:
    """The shortest EXIF data, without its head, with this orientation."""
    return b"MM\0*" + struct.pack(">LHHHLHHL", 8, 1, ExifTags.Base.Orientation, _SHORT, 1, value, 0, 0)
