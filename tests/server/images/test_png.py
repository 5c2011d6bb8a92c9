"""Every kind of PNG gives its colours, and white where they are transparent (PNG specification, 6.1, 8.2, 11.3.1)."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import Code
from tests.server.images.pictures import Pixels, decoded, difference, png, preprocessing, refusal

SIDE = 16
WHOLE = preprocessing(SIDE, SIDE)
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""Top, left, and distances down and across of each pass."""


@dataclass(frozen=True)
class Kind:
    """A kind of PNG."""

    depth: int
    colour: int  # 0: grey, 2: RGB, 3: palette, 4: grey and alpha, 6: RGB and alpha
    transparent: bool
    interlaced: bool


@st.composite
def kinds(draw: st.DrawFn) -> Kind:
    colour = draw(st.sampled_from(sorted(DEPTHS)))
    return Kind(draw(st.sampled_from(DEPTHS[colour])), colour, draw(st.booleans()), draw(st.booleans()))


def rows(samples: npt.NDArray[np.uint16], depth: int, filters: npt.NDArray[np.uint8]) -> bytes:
    """One pass, each row by its filter: 0 leaves it as it is, 1 and 2 take the difference to the left and above."""
    height, width, channels = samples.shape
    if not height or not width:
        return b""
    if depth == 16:
        lines = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = np.unpackbits(samples.astype(np.uint8).reshape(height, -1, 1), axis=2)[..., 8 - depth :]
        lines = np.packbits(bits.reshape(height, -1), axis=1)
    step = max(1, depth * channels // 8)
    left = np.zeros_like(lines)
    left[:, step:] = lines[:, :-step]
    above = np.zeros_like(lines)
    above[1:] = lines[:-1]
    choices = (lines, lines - left, lines - above)
    return b"".join(bytes((kind,)) + choices[kind][y].tobytes() for y, kind in enumerate(filters[:height]))


def file(kind: Kind, samples: npt.NDArray[np.uint16], palette: Pixels, hidden: list[int], seed: int) -> bytes:
    filters = np.random.default_rng(seed).integers(0, 3, SIDE).astype(np.uint8)
    passes = ADAM7 if kind.interlaced else ((0, 0, 1, 1),)
    data = b"".join(rows(samples[top::down, left::across], kind.depth, filters) for top, left, down, across in passes)
    chunks = [(b"PLTE", palette.tobytes())] if kind.colour == 3 else []
    if kind.transparent and kind.colour == 3:
        chunks.append((b"tRNS", bytes(hidden)))
    elif kind.transparent and kind.colour in (0, 2):
        chunks.append((b"tRNS", b"".join(value.to_bytes(2, "big") for value in hidden)))
    return png(SIDE, SIDE, kind.depth, kind.colour, data, *chunks, interlaced=kind.interlaced)


def expected(kind: Kind, samples: npt.NDArray[np.uint16], palette: Pixels, hidden: list[int]) -> Pixels:
    limit = 2.0**kind.depth - 1
    share = samples / limit
    alpha = np.ones((SIDE, SIDE, 1))
    match kind.colour:
        case 3:
            colours = palette[samples[..., 0]] / 255
            if kind.transparent:
                alphas = np.array(hidden + [255] * 256)[: 2**kind.depth] / 255
                alpha = alphas[samples[..., 0], None]
        case 4 | 6:
            colours, alpha = share[..., :-1], share[..., -1:]
        case _:
            colours = share
            if kind.transparent:
                alpha = np.any(samples != hidden, axis=2, keepdims=True).astype(float)
    whole = np.floor((colours * alpha + 1 - alpha) * 255 + 0.5)
    return np.broadcast_to(whole, (SIDE, SIDE, 3)).astype(np.uint8)


@settings(max_examples=500, deadline=None)
@given(kind=kinds(), seed=st.integers(0, 9))
def test_any_kind_gives_its_colours(kind: Kind, seed: int) -> None:
    noise = np.random.default_rng(seed)
    samples = noise.integers(0, 2**kind.depth, (SIDE, SIDE, CHANNELS[kind.colour])).astype(np.uint16)
    palette = noise.integers(0, 256, (2 ** min(8, kind.depth), 3)).astype(np.uint8)
    if kind.colour == 3:
        hidden = noise.integers(0, 256, noise.integers(1, 2**kind.depth + 1)).tolist()
    else:
        hidden = samples[3, 4].tolist()
        samples[5:8, 5:8] = hidden
        if kind.depth == 16:
            samples[9] = np.array(hidden) ^ 1  # different in the lower byte
    tolerance = 2 if kind.depth == 16 and kind.colour in (4, 6) else 1
    out = decoded(file(kind, samples, palette, hidden, seed), WHOLE)
    assert difference(out, expected(kind, samples, palette, hidden)) <= tolerance


@pytest.mark.parametrize("colour", [0, 2])
@pytest.mark.parametrize("interlaced", [False, True])
def test_of_16_bits_only_the_very_colour_is_transparent(colour: int, *, interlaced: bool) -> None:
    samples = np.full((SIDE, SIDE, CHANNELS[colour]), 0x1234, np.uint16)
    samples[: SIDE // 2] = 0x1235
    hidden = [0x1234] * CHANNELS[colour]
    out = decoded(file(Kind(16, colour, True, interlaced), samples, np.zeros((1, 3), np.uint8), hidden, 0), WHOLE)
    assert difference(out[: SIDE // 2], 0x12) == 0
    assert difference(out[SIDE // 2 :], 255) == 0


RED, ROWS = b"\xff\0\0", bytes((SIDE + 1) * SIDE)
HEADER = (b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))
PARTS = {
    "no palette": [],
    "a palette of no colours": [(b"PLTE", b"")],
    "two palettes": [(b"PLTE", RED), (b"PLTE", b"\0\xff\0")],
    "an empty palette and another": [(b"PLTE", b""), (b"PLTE", RED)],
    "two headers": [HEADER, (b"PLTE", RED)],
}


@pytest.mark.parametrize("chunks", PARTS.values(), ids=PARTS)
def test_what_decoders_understand_in_different_ways_is_refused(chunks: list[tuple[bytes, bytes]]) -> None:
    """Of several palettes Pillow takes the last, and missing colours are black; browsers show nothing."""
    assert difference(decoded(png(SIDE, SIDE, 8, 3, ROWS, (b"PLTE", RED)), WHOLE), (255, 0, 0)) == 0
    assert refusal(png(SIDE, SIDE, 8, 3, ROWS, *chunks)) is Code.BROKEN_IMAGE


def test_transparency_counts_only_behind_the_palette() -> None:
    hidden, palette = (b"tRNS", b"\0"), (b"PLTE", RED)
    assert difference(decoded(png(SIDE, SIDE, 8, 3, ROWS, palette, hidden), WHOLE), (255, 255, 255)) == 0
    assert difference(decoded(png(SIDE, SIDE, 8, 3, ROWS, hidden, palette), WHOLE), (255, 0, 0)) == 0


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_metadata_may_be_larger_than_pillow_unpacks(kind: bytes) -> None:
    """For example, printers' colour profiles, and programs' records of how they made a picture."""
    profile = np.random.default_rng(0).integers(0, 4, 2 * 2**20).astype(np.uint8)
    head = b"k\0\1\0\0\0" if kind == b"iTXt" else b"k\0\0"
    data = png(SIDE, SIDE, 8, 3, ROWS, (kind, head + zlib.compress(profile.tobytes(), 1)), (b"PLTE", RED))
    assert difference(decoded(data, WHOLE), (255, 0, 0)) == 0
