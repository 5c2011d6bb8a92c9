"""BMP: variants that Pillow decodes in Python or not at all, and truncated files."""

import struct

from server.errors import Code, ServiceError

_CORE_HEADER_BYTES = 12
_PALETTE_BITS = 8


def prepared(data: bytes) -> bytes:
    """The file for Pillow to decode: a header that claims more palette colours than pixels can name is corrected.

    Raises:
        ServiceError: NOT_AN_IMAGE, it is run-length compressed: Pillow's decoder for that is written in Python.
    """
    if int.from_bytes(data[14:18], "little") <= _CORE_HEADER_BYTES:
        return data
    if data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
        raise ServiceError(
            Code.NOT_AN_IMAGE, "run-length compressed BMP is not accepted; send the BMP uncompressed, or as PNG"
        )
    bits, colours = int.from_bytes(data[28:30], "little"), int.from_bytes(data[46:50], "little")
    if bits <= _PALETTE_BITS and colours > 2**bits:
        return data[:46] + struct.pack("<I", 2**bits) + data[50:]
    return data


def share(data: bytes) -> float:
    """Share of the rows that the file contains, 0 to 1.

    Raises:
        struct.error: the file ends within its header.
    """
    offset, header = struct.unpack_from("<II", data, 10)
    if header == _CORE_HEADER_BYTES:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    wanted = (width * bits + 31) // 32 * 4 * abs(height)
    return min(1.0, max(0, len(data) - offset) / wanted) if wanted > 0 else 1.0
