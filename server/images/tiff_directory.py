"""The tags of a TIFF file, and the picture's layout that they describe (TIFF 6.0, BigTIFF)."""

import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from server.images.bounds import bound
from server.images.jpeg_repair import frame_size

_MAX_TAGS = 1000
_MAX_VALUES = 50_000
"""Most numbers in all tags together: each strip or tile has two, and is decoded on its own."""

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _SUB_DIRECTORIES, _DNG_VERSION = 254, 255, 256, 257, 330, 50706
_BITS, COMPRESSION, PHOTOMETRIC, _SAMPLES, PLANAR = 258, 259, 262, 277, 284
COLOUR_MAP, INK_SET, _EXTRAS, _FORMAT, COEFFICIENTS, SUBSAMPLING, REFERENCE = 320, 332, 338, 339, 529, 530, 532
_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_NEEDED = {
    *(_WIDTH, _HEIGHT, _BITS, COMPRESSION, PHOTOMETRIC, _SAMPLES, PLANAR, 317, COLOUR_MAP, INK_SET, _EXTRAS, _FORMAT),
    *(_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES),
    *(266, 274),  # order of bits, orientation
    *(292, 293, 347, 512, 513, 514, 519, 520, 521, 529, 530, 531, 532),  # of fax, JPEG and YCbCr
}
"""Tags that affect the pixels; all others are metadata."""
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""Field types of unsigned numbers, with their `struct` formats."""

_UINT, _INT, _FLOAT = 1, 2, 3
_FORMATS = {_UINT: "unsigned", _INT: "signed", _FLOAT: "floating-point"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, YCBCR = 0, 1, 2, 6
_COLOURS = {
    _WHITE_IS_ZERO: ("grey", 1),
    _BLACK_IS_ZERO: ("grey", 1),
    _RGB: ("RGB", 3),
    3: ("palette", 1),
    4: ("mask", 1),
    5: ("CMYK", 4),
    YCBCR: ("YCbCr", 3),
    8: ("CIELab", 3),
    9: ("ICCLab", 3),
    10: ("ITULab", 3),
    32844: ("LogL", 1),
    32845: ("LogLuv", 3),
}
"""Photometric interpretations: name, and samples per pixel without extra ones."""
_SENSOR = (32803, 34892)
"""Photometric interpretations of DNG and TIFF/EP: a sensor's raw values, by colour filter or already per colour."""
_ALPHA = ((), (0,), (1,), (2,))
_DECODED: Mapping[tuple[int, int, int], tuple[tuple[int, ...], ...]] = {
    **{(grey, _UINT, bits): ((),) for grey in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) for bits in (1, 2, 4, 8, 16)},
    **{(grey, _FLOAT, 32): ((),) for grey in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)},
    (_BLACK_IS_ZERO, _UINT, 8): _ALPHA,
    (_BLACK_IS_ZERO, _INT, 32): ((),),
    (_RGB, _UINT, 8): (*_ALPHA, (0, 0), (1, 0), (2, 0), (0, 0, 0), (1, 0, 0), (2, 0, 0), (999,)),  # CorelDRAW's alpha
    (_RGB, _UINT, 16): _ALPHA,
    **{(3, _UINT, bits): ((),) for bits in (1, 2, 4)},
    (3, _UINT, 8): ((), (0,), (2,)),
    (5, _UINT, 8): ((), (0,), (0, 0)),
    (5, _UINT, 16): ((),),
    (YCBCR, _UINT, 8): ((),),
    (8, _UINT, 8): ((),),
}
"""Photometric interpretation, sample format and bits to the extra samples allowed: 1 and 2 are alpha, 0 is unspecified.

Pillow opens more layouts, but shows some of them wrongly; tests/server/images/test_tiff.py compares them all."""
_OLD_JPEG, _JPEG = 6, 7
_JPEG_HEAD_BYTES = 2**12
"""A strip's frame header lies within this many bytes: only tables precede it."""


class Layout(NamedTuple):
    """How the samples of a picture are stored."""

    photometric: int
    sample_format: int
    bits: tuple[int, ...]  # of each sample in a pixel
    extras: tuple[int, ...]
    planes: bool
    compressed: bool

    @property
    def decoded(self) -> bool:
        """Whether Pillow gets its colours right."""
        if not self.bits or len(set(self.bits)) != 1:
            return False
        _, colours = _COLOURS.get(self.photometric, ("", 0))
        extras = self.extras
        if self.planes and extras and not any(extras):
            if not self.compressed:
                return False
            extras = ()  # Pillow ignores their planes
        alone = self.photometric == YCBCR and len(self.bits) == 1  # luminance
        unsaid = self.photometric == _RGB and not extras and len(self.bits) == 4  # the fourth is taken as alpha
        count = len(self.bits) == colours + len(self.extras) or alone or unsaid
        kind = self.photometric, self.sample_format, self.bits[0]
        plane = self.photometric not in (YCBCR, 8) and (not extras or (self.photometric == _RGB and len(extras) == 1))
        return count and extras in _DECODED.get(kind, ()) and (plane or not self.planes)

    @property
    def negative(self) -> bool:
        """Whether Pillow decodes the picture as a negative, in which white is 0."""
        return self.photometric == _WHITE_IS_ZERO and self.bits[0] > 8

    def __str__(self) -> str:
        colours, _ = _COLOURS.get(self.photometric, (f"photometric interpretation {self.photometric}", 0))
        alpha = " and alpha" if {1, 2} & {*self.extras} else " and extra samples" if self.extras else ""
        bits = " and ".join(map(str, dict.fromkeys(self.bits)))
        planes = " in planes of their own" if self.planes else ""
        return f"{colours}{alpha} in {_FORMATS.get(self.sample_format, 'other')} samples of {bits} bits{planes}"


class _Entry(NamedTuple):
    kind: int
    values: int
    at: int  # in the file
    whole: bytes


class Directory:
    """The tags of a TIFF's first picture, or of the one at an offset."""

    def __init__(self, data: bytes, at: int | None = None) -> None:
        """Read the tags.

        Raises:
            ServiceError: BROKEN_IMAGE, there are too many.
            struct.error: the file ends before they do.
        """
        self._data = data
        self._order = "<" if data.startswith(b"II") else ">"
        self._big = 43 in data[2:4]  # BigTIFF
        word = "Q" if self._big else "I"
        if at is None:
            (at,) = struct.unpack_from(self._order + word, data, 8 if self._big else 4)
        (tags,) = struct.unpack_from(self._order + ("Q" if self._big else "H"), data, at)
        bound(tags, _MAX_TAGS, "the TIFF image has {} tags")
        at += 8 if self._big else 2
        entry = struct.Struct(f"{self._order}HH{word}{'8x' if self._big else '4x'}")
        block = data[at : at + tags * entry.size]
        if len(block) < tags * entry.size:
            raise struct.error("the file ends within its directory")
        self._entries: dict[int, _Entry] = {}
        for index, (tag, kind, count) in enumerate(entry.iter_unpack(block)):
            start = index * entry.size
            self._entries[tag] = _Entry(
                kind, count, at + start + entry.size - struct.calcsize(word), block[start : start + entry.size]
            )
        values = sum(entry.values for entry in self._entries.values() if entry.kind not in (1, 2, 7))  # bytes and text
        bound(values, _MAX_VALUES, "the TIFF image has {} numbers in its tags")

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Unsigned values of a tag; empty if it is missing or has another type."""
        entry = self._entries.get(tag)
        if entry is None or entry.kind not in _INTEGERS:
            return ()
        form = struct.Struct(f"{self._order}{entry.values}{_INTEGERS[entry.kind]}")
        at = entry.at
        if form.size > (8 if self._big else 4):
            (at,) = struct.unpack_from(self._order + ("Q" if self._big else "I"), self._data, at)
        try:
            return form.unpack_from(self._data, at)
        except (struct.error, OverflowError):
            return ()

    def number(self, tag: int, default: int) -> int:
        """First value of a tag."""
        return next(iter(self.numbers(tag)), default)

    @property
    def has_whole_tags(self) -> bool:
        """Whether the file contains the values of all tags that affect the pixels."""
        needed = [tag for tag, entry in self._entries.items() if tag in _NEEDED and entry.kind in _INTEGERS]
        return all(len(self.numbers(tag)) == self._entries[tag].values for tag in needed)

    @property
    def layout(self) -> Layout:
        """The picture's layout, with Pillow's defaults for missing tags."""
        compression = self.number(COMPRESSION, 1)
        photometric = YCBCR if compression == _OLD_JPEG else self.number(PHOTOMETRIC, _WHITE_IS_ZERO)
        usual = 3 if compression in (_OLD_JPEG, _JPEG) and photometric in (_RGB, YCBCR) else 1
        samples = min(self.number(_SAMPLES, usual), _MAX_TAGS)
        bits = self.numbers(_BITS) or (1,)
        formats = set(self.numbers(_FORMAT) or (_UINT,))
        return Layout(
            photometric,
            formats.pop() if len(formats) == 1 else 0,
            bits * samples if len(bits) == 1 else bits[:samples],
            self.numbers(_EXTRAS),
            self.number(PLANAR, 1) == 2 and samples > 1,
            compression != 1,
        )

    @property
    def camera_file(self) -> bool:
        """Whether the first picture is only the thumbnail of a camera's raw file, or has the sensor's raw values."""
        if self._entries.keys() & {_DNG_VERSION} or self.number(PHOTOMETRIC, 0) in _SENSOR:
            return True
        for at in self.numbers(_SUB_DIRECTORIES)[:8]:
            with suppress(struct.error, OverflowError):
                if Directory(self._data, at).number(PHOTOMETRIC, 0) in _SENSOR:
                    return True
        reduced = self.number(_SUBFILE, 0) & 1 or self.number(_OLD_SUBFILE, 1) == 2
        return bool(reduced and self.numbers(_SUB_DIRECTORIES))

    @property
    def has_whole_jpegs(self) -> bool:
        """Whether JPEG strips or tiles are as large as the tags say: if not, libtiff does not fill the rest."""
        if self.number(COMPRESSION, 1) != _JPEG or self.layout.planes:
            return True
        width, height = self.number(_WIDTH, 0), self.number(_HEIGHT, 0)
        rows = self.number(_STRIP_ROWS, height)
        tiles, across = self.numbers(_TILE_OFFSETS), self.number(_TILE_WIDTH, 0)
        for index, at in enumerate(tiles or self.numbers(_STRIP_OFFSETS)):
            wanted = (across, self.number(_TILE_HEIGHT, 0)) if tiles else (width, min(rows, height - index * rows))
            size = frame_size(self._data[at : at + _JPEG_HEAD_BYTES])
            if size is not None and any(have < want for have, want in zip(size, wanted, strict=True)):
                return False
        return True

    @property
    def share_of_parts(self) -> float:
        """Share of the picture's strips or tiles that have an offset, 0 to 1.

        Pillow leaves a part without an offset black, and reads one with offset 0 from the file's header.
        """
        width, height = self.number(_WIDTH, 0), self.number(_HEIGHT, 0)
        across, down = self.number(_TILE_WIDTH, 0), self.number(_TILE_HEIGHT, 0)
        if not (across and down):
            across, down = width, self.number(_STRIP_ROWS, height)
        offsets = self.numbers(_STRIP_OFFSETS) or self.numbers(_TILE_OFFSETS)
        if not (offsets and across and down):
            return 1.0  # an old-style JPEG, or an unreadable file
        wanted = -(-width // across) * -(-height // down) * (len(self.layout.bits) if self.layout.planes else 1)
        return min(1.0, sum(map(bool, offsets)) / max(1, wanted))

    @property
    def share(self) -> float:
        """Share of the bytes of strips or tiles that the file contains, 0 to 1; 0 if the tags do not list them."""
        offsets = self.numbers(_STRIP_OFFSETS) or self.numbers(_TILE_OFFSETS)
        counts = self.numbers(_STRIP_BYTES) or self.numbers(_TILE_BYTES)
        there = [max(0, min(count, len(self._data) - at)) for at, count in zip(offsets, counts, strict=False)]
        return sum(there) / max(1, sum(counts))

    def without_metadata(self) -> bytes:
        """The file with a new directory appended, which has only the tags that affect the pixels."""
        data = self._data + bytes(len(self._data) % 2)
        kept = [entry.whole for tag, entry in sorted(self._entries.items()) if tag in _NEEDED]
        word, short, first = ("Q", "Q", 8) if self._big else ("I", "H", 4)
        offset = struct.pack(self._order + word, len(data))
        directory = struct.pack(self._order + short, len(kept)) + b"".join(kept) + struct.pack(self._order + word, 0)
        return data[:first] + offset + data[first + len(offset) :] + directory

    def black_is_zero(self) -> bytes:
        """The file, changed to declare that black is 0."""
        entry = self._entries.get(PHOTOMETRIC)
        if entry is None or entry.kind not in _INTEGERS:
            return self._data
        value = struct.pack(self._order + _INTEGERS[entry.kind], _BLACK_IS_ZERO)
        return self._data[: entry.at] + value + self._data[entry.at + len(value) :]
