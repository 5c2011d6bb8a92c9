"""TIFF files of any layout, written according to TIFF 6.0 and its supplements, and the colours that they mean."""

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
UINT, INT, FLOAT = 1, 2, 3
NONE, DEFLATE, PACKBITS = 1, 8, 32773
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4}
"""Samples of a pixel without the extra ones, by photometric interpretation."""


@dataclass(frozen=True)
class Layout:
    """How the samples of a picture are stored."""

    photometric: int = RGB
    bits: int = 8
    sample_format: int = UINT
    extras: tuple[int, ...] = ()  # 0: unspecified, 1: associated alpha, 2: unassociated alpha
    planar: Literal[1, 2] = 1
    order: Literal["<", ">"] = "<"
    compression: int = NONE
    predictor: Literal[1, 2] = 1
    rows_per_strip: int = 2**16
    tile: int = 0
    big: bool = False
    colour_map: npt.NDArray[np.uint16] | None = None  # [3, 2 ** bits]
    tags: dict[int, tuple[int, Any]] = field(default_factory=dict)  # additional tags: kind and value

    @property
    def samples(self) -> int:
        """Number of samples of a pixel."""
        return COLOURS[self.photometric] + len(self.extras)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a sample in the file, or in memory if it has less than a byte."""
        kind = {UINT: "u", INT: "i", FLOAT: "f"}[self.sample_format]
        return np.dtype(f"{self.order}{kind}{max(1, self.bits // 8)}")


def written(layout: Layout, samples: npt.NDArray[Any]) -> bytes:
    """A file of `samples` [height, width, samples of a pixel]."""
    height, width, count = samples.shape
    planes = [samples] if layout.planar == 1 else [samples[..., [index]] for index in range(count)]
    if layout.tile:
        side = layout.tile
        parts = []
        for plane in planes:
            padded = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)))
            rows, columns = padded.shape[0] // side, padded.shape[1] // side
            parts += [
                padded[y * side : (y + 1) * side, x * side : (x + 1) * side]
                for y in range(rows)
                for x in range(columns)
            ]
    else:
        step = layout.rows_per_strip
        parts = [plane[y : y + step] for plane in planes for y in range(0, height, step)]
    data = [_compressed(layout, part) for part in parts]
    tags: dict[int, tuple[int, Any]] = {
        256: (4, width),
        257: (4, height),
        258: (3, [layout.bits] * count),
        259: (3, layout.compression),
        262: (3, layout.photometric),
        277: (3, count),
        284: (3, layout.planar),
        339: (3, [layout.sample_format] * count),
    }
    if layout.extras:
        tags[338] = 3, list(layout.extras)
    if layout.predictor != 1:
        tags[317] = 3, layout.predictor
    if layout.colour_map is not None:
        tags[320] = 3, layout.colour_map.ravel().tolist()
    return assembled(
        tags | layout.tags, data, order=layout.order, big=layout.big, tile=layout.tile, rows=layout.rows_per_strip
    )


def assembled(
    tags: dict[int, tuple[int, Any]],
    data: list[bytes],
    *,
    order: str = "<",
    big: bool = False,
    tile: int = 0,
    rows: int = 2**16,
) -> bytes:
    """A file with one directory, after its strips or tiles."""
    start = 16 if big else 8
    offsets = [start + sum(map(len, data[:index])) for index in range(len(data))]
    if tile:
        tags = tags | {322: (4, tile), 323: (4, tile), 324: (4, offsets), 325: (4, [*map(len, data)])}
    else:
        tags = tags | {273: (4, offsets), 278: (4, rows), 279: (4, [*map(len, data)])}
    at = offsets[-1] + len(data[-1])
    directory_at = at + at % 2
    word, room = ("Q", 8) if big else ("I", 4)
    entries, outside = b"", b""
    outside_at = directory_at + (8 + 20 * len(tags) + 8 if big else 2 + 12 * len(tags) + 4)
    for tag, (kind, value) in sorted(tags.items()):
        values = value if isinstance(value, (list, tuple)) else [value]
        if kind in (1, 2, 7):
            packed = bytes(value)
            count = len(packed)
        else:
            form = {3: "H", 4: "I", 5: "II", 11: "f", 13: "I", 16: "Q"}[kind]
            flat = np.ravel(values).tolist()
            count = len(flat) // len(form)
            packed = struct.pack(order + form * count, *flat)
        entries += struct.pack(order + "HH" + word, tag, kind, count)
        if len(packed) <= room:
            entries += packed.ljust(room, b"\0")
        else:
            entries += struct.pack(order + word, outside_at + len(outside))
            outside += packed + bytes(len(packed) % 2)
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0) if big else (42,)), directory_at)
    count_of = struct.pack(order + ("Q" if big else "H"), len(tags))
    return head + b"".join(data) + bytes(at % 2) + count_of + entries + bytes(room) + outside


def _compressed(layout: Layout, part: npt.NDArray[Any]) -> bytes:
    height, width, count = part.shape
    if layout.bits < 8:
        flat = part.reshape(height, width * count).astype(np.uint8)
        bits = np.unpackbits(flat[..., None], axis=2)[..., 8 - layout.bits :].reshape(height, -1)
        data = np.packbits(bits, axis=1).tobytes()
    elif layout.predictor == 2:
        data = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1])).astype(layout.dtype).tobytes()
    else:
        data = part.astype(layout.dtype).tobytes()
    match layout.compression:
        case 1:
            return data
        case 8:
            return zlib.compress(data)
        case 32773:
            chunks = [data[at : at + 128] for at in range(0, len(data), 128)]
            return b"".join(bytes([len(chunk) - 1]) + chunk for chunk in chunks)
        case other:
            raise ValueError(other)


def colours(layout: Layout, samples: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """What the samples mean over white, as [height, width, 3]: unsigned integers of up to 16 bits, floats of 0 to 1."""
    limit = 1.0 if layout.sample_format == FLOAT else 2.0**layout.bits - 1
    share = samples.astype(float) / limit
    body, extra = share[..., : COLOURS[layout.photometric]], share[..., COLOURS[layout.photometric] :]
    match layout.photometric:
        case 0:
            found = np.repeat(1 - body, 3, axis=2)
        case 1:
            found = np.repeat(body, 3, axis=2)
        case 3:
            if layout.colour_map is None:
                raise ValueError("a palette has a colour map")
            scale = 255 if layout.colour_map.max() < 256 else 65535
            found = np.moveaxis(layout.colour_map[:, samples[..., 0]], 0, 2) / scale
        case 5:
            found = (1 - body[..., :3]) * (1 - body[..., 3:])
        case _:
            found = body
    if layout.extras[:1] == (2,):
        found = found * extra[..., :1] + 1 - extra[..., :1]
    elif layout.extras[:1] == (1,):
        found = np.minimum(1, found + 1 - extra[..., :1])
    return np.floor(found * 255 + 0.5).astype(np.uint8)
