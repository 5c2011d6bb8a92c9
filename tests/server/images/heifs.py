"""HEIF files with properties that an encoder would not give them (ISO/IEC 14496-12 and 23008-12)."""

import re
import struct
from collections.abc import Callable

Boxes = list[tuple[bytes, bytes]]
"""Type and content of each box."""


def boxes(data: bytes) -> Boxes:
    """Split a sequence of boxes, all with sizes of 32 bits."""
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + size]))
        at += size
    return found


def joined(found: Boxes) -> bytes:
    """Join boxes into a file."""
    return b"".join(struct.pack(">I4s", 8 + len(body), kind) + body for kind, body in found)


def with_properties(data: bytes, change: Callable[[Boxes], Boxes]) -> bytes:
    """The file with other item properties; those that are added belong to the first item, after its own."""
    top = boxes(data)
    meta = dict(top)[b"meta"]
    inner = boxes(meta[4:])
    properties = boxes(dict(inner)[b"iprp"])
    before = boxes(dict(properties)[b"ipco"])
    after = change(before)
    added = range(len(before) + 1, len(after) + 1)
    parts = {b"ipco": joined(after), b"ipma": _associated(dict(properties)[b"ipma"], added)}
    iprp = joined([(kind, parts[kind]) for kind, _ in properties])
    grown = len(iprp) - len(dict(inner)[b"iprp"])
    changed = {b"iprp": iprp, b"iloc": _moved(dict(inner)[b"iloc"], grown)}
    new = meta[:4] + joined([(kind, changed.get(kind, body)) for kind, body in inner])
    return joined([(kind, new if kind == b"meta" else body) for kind, body in top])


def turned(data: bytes, quarters: int, mirror: int | None = None) -> bytes:
    """Have readers rotate it anticlockwise, then mirror it: 0 exchanges top and bottom, 1 left and right."""
    more = [(b"irot", bytes((quarters,)))] + ([] if mirror is None else [(b"imir", bytes((mirror,)))])
    return with_properties(data, lambda found: [*found, *more])


def coded_as(data: bytes, width: int, height: int) -> bytes:
    """Tell the decoder another size of the coded picture than the container says."""

    def change(found: Boxes) -> Boxes:
        return [(kind, _resized(body, width, height) if kind == b"hvcC" else body) for kind, body in found]

    return with_properties(data, change)


def _associated(ipma: bytes, added: range) -> bytes:
    count = ipma[10]
    mine = ipma[11 : 11 + count] + bytes(0x80 | index for index in added)
    return ipma[:10] + bytes((len(mine),)) + mine + ipma[11 + count :]


def _moved(iloc: bytes, by: int) -> bytes:
    """Move the offsets of an iloc box of version 0 or 1, with base offsets of 32 bits, as libheif writes it."""
    version, sizes = iloc[0], iloc[4:6]
    if sizes != b"\x44\x40":
        raise ValueError(sizes)
    moved, at = bytearray(iloc), 8
    for _ in range(int.from_bytes(iloc[6:8], "big")):
        method = int.from_bytes(iloc[at + 2 : at + 4], "big") & 15 if version else 0
        at += 6 if version else 4
        if method == 0:
            struct.pack_into(">I", moved, at, struct.unpack_from(">I", iloc, at)[0] + by)
        at += 6 + 8 * int.from_bytes(iloc[at + 4 : at + 6], "big")
    return bytes(moved)


def _resized(hvcc: bytes, width: int, height: int) -> bytes:
    """Change the size in the sequence parameter set (ITU-T H.265, 7.3.2.2)."""
    found, at = hvcc[:23], 23
    for _ in range(hvcc[22]):
        kind, count = hvcc[at] & 63, int.from_bytes(hvcc[at + 1 : at + 3], "big")
        found += hvcc[at : at + 3]
        at += 3
        for _ in range(count):
            length = int.from_bytes(hvcc[at : at + 2], "big")
            unit = hvcc[at + 2 : at + 2 + length]
            at += 2 + length
            if kind == 33:
                unit = _sequence(unit, width, height)
            found += len(unit).to_bytes(2, "big") + unit
    return found


def _sequence(unit: bytes, width: int, height: int) -> bytes:
    plain = re.sub(rb"\x00\x00\x03", b"\0\0", unit)
    bits = "".join(f"{byte:08b}" for byte in plain)
    at = 16 + 8 + 96  # after the unit's head, the numbers of layers, and the profile of one layer
    for _ in range(2):  # its number, and the chroma format
        at = _skipped(bits, at)
    end = _skipped(bits, _skipped(bits, at))
    changed = bits[:at] + _exp_golomb(width) + _exp_golomb(height) + bits[end:].rstrip("0")
    packed = int(changed.ljust(-(-len(changed) // 8) * 8, "0"), 2).to_bytes(-(-len(changed) // 8), "big")
    return re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\0\0\3", packed)


def _skipped(bits: str, at: int) -> int:
    zeros = bits.index("1", at) - at
    return at + 2 * zeros + 1


def _exp_golomb(value: int) -> str:
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits
