"""Every layout of TIFF gives its colours, compared with another decoder's samples, or is refused by name."""

import io
import struct
import zlib
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.errors import Code, ServiceError
from tests.server.images.pictures import Pixels, decoded, difference, encoded, picture, preprocessing, refusal
from tests.server.images.tiffs import (
    BLACK_IS_ZERO,
    CMYK,
    COLOURS,
    DEFLATE,
    FLOAT,
    INT,
    NONE,
    PACKBITS,
    PALETTE,
    RGB,
    UINT,
    WHITE_IS_ZERO,
    Layout,
    assembled,
    colours,
    written,
)

# about the directory, which is not EXIF data
pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")

SIDE = 16
WHOLE = preprocessing(SIDE, SIDE)

MUST = [
    *(Layout(grey, bits) for grey in (WHITE_IS_ZERO, BLACK_IS_ZERO) for bits in (1, 2, 4, 8, 16)),
    *(Layout(grey, 32, FLOAT) for grey in (WHITE_IS_ZERO, BLACK_IS_ZERO)),
    *(Layout(RGB, bits, extras=extras) for bits in (8, 16) for extras in ((), (0,), (1,), (2,))),
    *(Layout(RGB, bits, planar=2) for bits in (8, 16)),
    *(Layout(BLACK_IS_ZERO, 8, extras=extras) for extras in ((0,), (1,), (2,))),
    *(Layout(PALETTE, bits) for bits in (1, 2, 4, 8)),
    *(Layout(CMYK, bits) for bits in (8, 16)),
]
"""Layouts that are decoded, whatever the compression and byte order."""


def samples(layout: Layout, seed: int = 0) -> npt.NDArray[Any]:
    """Noise, premultiplied where the layout says so."""
    noise = np.random.default_rng(seed)
    shape = (SIDE, SIDE, layout.samples)
    found: npt.NDArray[Any]
    if layout.sample_format == FLOAT:
        found = noise.random(shape, np.float32)
    else:
        found = noise.integers(0, 2 ** (layout.bits - (layout.sample_format == INT)), shape, dtype=np.uint64)
    if layout.extras[:1] == (1,):
        body = COLOURS[layout.photometric]
        found[..., :body] = np.minimum(found[..., :body], found[..., [body]])
    return found


def with_colours(layout: Layout, *, eight_bits: bool = False) -> Layout:
    """The layout with a colour map, if it needs one."""
    if layout.photometric != PALETTE:
        return layout
    colour_map = np.random.default_rng(1).integers(256, 2**16, (3, 2**layout.bits)).astype(np.uint16)
    return replace(layout, colour_map=(colour_map >> 8).astype(np.uint16) if eight_bits else colour_map)


def as_another_reads(data: bytes, layout: Layout) -> npt.NDArray[Any]:
    """The samples as another decoder reads them: [height, width, samples of a pixel]."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = np.asarray(file.pages.first.asarray())
    if layout.planar == 2 and layout.samples > 1:
        found = np.moveaxis(found, 0, -1)
    return found.reshape(SIDE, SIDE, layout.samples)


def check(layout: Layout, stored: npt.NDArray[Any]) -> None:
    data = written(layout, stored)
    if layout.bits not in (2, 4):  # tifffile needs a library of 20 MB for these
        read = as_another_reads(data, layout)
        assert np.array_equal(read, stored)
    # 16 bits are cut to 8 before they are put over white, or inks over paper
    tolerance = 3 if layout.bits == 16 and (layout.extras or layout.photometric == CMYK) else 1
    assert difference(decoded(data, WHOLE), colours(layout, stored)) <= tolerance


@pytest.mark.parametrize("layout", MUST, ids=repr)
def test_usual_layouts_give_their_colours(layout: Layout) -> None:
    for order, compression, big in product("<>", (NONE, DEFLATE, PACKBITS), (False, True)):
        if big and order == ">":
            continue
        full = with_colours(replace(layout, order=order, compression=compression, big=big))  # type: ignore[arg-type]
        check(full, samples(full))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_colour_map_of_8_bits_is_no_black_picture(bits: int) -> None:
    layout = with_colours(Layout(PALETTE, bits), eight_bits=True)
    check(layout, samples(layout))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any layout in the specification, few of which are usual."""
    photometric = draw(st.sampled_from([WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK]))
    kinds = [(UINT, 1), (UINT, 2), (UINT, 4), (UINT, 8)]
    if photometric != PALETTE:
        kinds += [
            (UINT, 16),
            (UINT, 32),
            (UINT, 64),
            (INT, 8),
            (INT, 16),
            (INT, 32),
            (FLOAT, 16),
            (FLOAT, 32),
            (FLOAT, 64),
        ]
    sample_format, bits = draw(st.sampled_from(kinds))
    compression = draw(st.sampled_from([NONE, DEFLATE, PACKBITS]))
    predicted = compression == DEFLATE and bits >= 8 and sample_format != FLOAT
    layout = Layout(
        photometric,
        bits,
        sample_format,
        extras=draw(st.sampled_from([(), (0,), (1,), (2,), (0, 0), (2, 0)])),
        planar=draw(st.sampled_from([1, 2])),
        order=draw(st.sampled_from(["<", ">"])),
        compression=compression,
        predictor=draw(st.sampled_from([1, 2])) if predicted else 1,
        rows_per_strip=draw(st.sampled_from([1, 5, 16, 2**16])),
        tile=draw(st.sampled_from([0, 0, 16])),
        big=draw(st.booleans()),
    )
    return with_colours(layout, eight_bits=draw(st.booleans()))


@settings(max_examples=600, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 3))
def test_any_layout_gives_its_colours_or_is_refused_by_its_name(layout: Layout, seed: int) -> None:
    stored = samples(layout, seed)
    refused = refusal_of(written(layout, stored))
    if refused is None:
        check(layout, stored)
    else:
        assert refused.code is Code.NOT_AN_IMAGE
        if layout.big and layout.order == ">":
            assert "this is BigTIFF with its most significant bytes first" in str(refused)
        else:
            assert "this is TIFF of" in str(refused)
            assert f"samples of {layout.bits} bits" in str(refused)


def refusal_of(data: bytes) -> ServiceError | None:
    try:
        decoded(data, WHOLE)
    except ServiceError as error:
        return error
    return None


def named(data: bytes) -> str:
    with pytest.raises(ServiceError) as caught:
        decoded(data, WHOLE)
    assert caught.value.code is Code.NOT_AN_IMAGE
    return str(caught.value)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (Layout(BLACK_IS_ZERO, 16, extras=(2,)), "grey and alpha in unsigned samples of 16 bits"),
        (Layout(BLACK_IS_ZERO, 16, INT), "grey in signed samples of 16 bits"),
        (Layout(BLACK_IS_ZERO, 8, INT), "grey in signed samples of 8 bits"),
        (Layout(BLACK_IS_ZERO, 32), "grey in unsigned samples of 32 bits"),
        (Layout(RGB, 32, FLOAT), "RGB in floating-point samples of 32 bits"),
        (Layout(BLACK_IS_ZERO, 8, extras=(2,), planar=2), "grey and alpha in unsigned samples of 8 bits in planes"),
    ],
    ids=lambda value: str(value),
)
def test_what_is_not_decoded_is_named(layout: Layout, name: str) -> None:
    assert f"this is TIFF of {name}" in named(written(layout, samples(layout)))


@pytest.mark.parametrize("big", [False, True])
def test_a_file_that_ends_within_its_tags_is_damaged_and_not_unsupported(*, big: bool) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.asarray(picture()), photometric="rgb", metadata=None, bigtiff=big)
    data = buffer.getvalue()
    with tifffile.TiffFile(io.BytesIO(data)) as opened:
        ends = min(opened.pages.first.dataoffsets)
    for end in range(16, ends):
        assert refusal(data[:end]) is Code.BROKEN_IMAGE, end


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
def test_signed_samples_of_32_bits_count_as_16_bits_or_are_refused(order: Any, compression: int) -> None:
    layout = Layout(BLACK_IS_ZERO, 32, INT, order=order, compression=compression)
    values = np.random.default_rng(0).integers(0, 2**16, (SIDE, SIDE, 1))
    assert difference(decoded(written(layout, values), WHOLE), values >> 8) == 0
    for beyond in (-1, 2**16, 2**31 - 1):
        values[3, 4] = beyond
        assert "outside of 0 to 65535" in named(written(layout, values))


def floats(values: Any, photometric: int = BLACK_IS_ZERO, order: Any = "<") -> bytes:
    shaped = np.resize(np.asarray(values, np.float32), (SIDE, SIDE, 1))
    return written(Layout(photometric, 32, FLOAT, order=order), shaped)


@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_are_of_0_to_1_or_of_0_to_255(order: str) -> None:
    ramp = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32)
    expected = np.broadcast_to((ramp.reshape(SIDE, SIDE, 1) * 255), (SIDE, SIDE, 3))
    assert difference(decoded(floats(ramp, order=order), WHOLE), np.rint(expected)) <= 1
    assert difference(decoded(floats(ramp * 255, order=order), WHOLE), np.floor(expected)) <= 1
    assert difference(decoded(floats(ramp, WHITE_IS_ZERO, order), WHOLE), np.rint(255 - expected)) <= 1


def test_a_few_floats_beyond_the_range_are_clipped() -> None:
    values = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32)
    values[:2], values[2] = (7, np.inf), np.nan
    pixels = decoded(floats(values), WHOLE)
    assert pixels[0, :3, 0].tolist() == [255, 255, 0]
    assert pixels[-1, -1, 0] == 255


@pytest.mark.parametrize("factor", [4, 65535, 1e9])
def test_floats_of_another_range_are_refused(factor: float) -> None:
    assert "neither of 0 to 1 nor of 0 to 255" in named(floats(np.linspace(0, factor, SIDE * SIDE)))


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("said", [True, False])
def test_ycbcr_with_less_chroma_gives_its_colours(subsampling: tuple[int, int], *, said: bool) -> None:
    """Uncompressed: blocks of luminance, each followed by its chroma (TIFF 6.0, section 21); 2 by 2 by default."""
    if not said and subsampling != (2, 2):
        return
    across, down = subsampling
    ycbcr = np.asarray(picture(SIDE, SIDE).convert("YCbCr"))
    blocks = []
    for y, x in product(range(0, SIDE, down), range(0, SIDE, across)):
        block = ycbcr[y : y + down, x : x + across]
        blocks.append(bytes([*block[..., 0].ravel(), *np.rint(block[..., 1:].mean(axis=(0, 1))).astype(np.uint8)]))
    tags: dict[int, tuple[int, Any]] = {
        256: (4, SIDE),
        257: (4, SIDE),
        258: (3, [8, 8, 8]),
        259: (3, 1),
        262: (3, 6),
        277: (3, 3),
    }
    if said:
        tags[530] = 3, list(subsampling)
    assert difference(decoded(assembled(tags, [b"".join(blocks)]), WHOLE), picture(SIDE, SIDE)) <= 12


@pytest.mark.parametrize("luma", [(299, 587, 114), (2126, 7152, 722)])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
def test_ycbcr_gives_its_colours_by_the_coefficients_that_it_names(
    luma: tuple[int, int, int], compression: int
) -> None:
    """With the coefficients of standard and of high definition (ITU-R BT.601 and BT.709)."""
    whole = sum(luma)
    red, green, blue = (each / whole for each in luma)
    rgb = np.asarray(picture(SIDE, SIDE), float)
    y = rgb @ (red, green, blue)
    chroma = [(rgb[..., index] - y) / (2 - 2 * share) + 128 for index, share in ((2, blue), (0, red))]
    data = np.rint(np.stack([y, *chroma], axis=2)).astype(np.uint8).tobytes()
    tags: dict[int, tuple[int, Any]] = {256: (4, SIDE), 257: (4, SIDE), 258: (3, [8, 8, 8]), 262: (3, 6), 277: (3, 3)}
    tags |= {259: (3, compression), 529: (5, [part for each in luma for part in (each, whole)]), 530: (3, [1, 1])}
    packed = data if compression == NONE else zlib.compress(data)
    assert difference(decoded(assembled(tags, [packed]), WHOLE), picture(SIDE, SIDE)) <= 2


@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("lost", ["not named", "nowhere"])
def test_strips_and_tiles_that_are_nowhere_are_not_black(lost: str, compression: int, planar: Any, tile: int) -> None:
    side = 2 * SIDE
    layout = Layout(RGB, planar=planar, compression=compression, tile=tile, rows_per_strip=SIDE)
    data = written(layout, np.zeros((side, side, 3), np.uint8))
    decoded(data)
    tag = struct.pack("<HH", 324 if tile else 273, 4)
    at = data.index(tag, struct.unpack_from("<I", data, 4)[0]) + 4
    count, offsets = struct.unpack_from("<II", data, at)
    broken = bytearray(data)
    if lost == "not named":
        struct.pack_into("<I", broken, at, count - 1)
        if count == 2:
            broken[at + 4 : at + 8] = data[offsets : offsets + 4]
    else:
        struct.pack_into("<I", broken, offsets + 4 * count - 4, 0)
    with pytest.raises(ServiceError, match=rf"ends after about {100 * (count - 1) // count} % of its rows") as caught:
        decoded(bytes(broken))
    assert caught.value.code is Code.BROKEN_IMAGE


@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("size", [(16, 16), (8, 16), (16, 8), (32, 32)])
def test_a_jpeg_that_is_smaller_than_its_strip_or_tile_is_refused(size: tuple[int, int], tile: int) -> None:
    """libtiff would leave uninitialised memory in the rest; it refuses larger ones itself."""
    part = encoded(picture(*size), "JPEG", subsampling=0)
    tags: dict[int, tuple[int, Any]] = {256: (4, SIDE), 257: (4, SIDE), 258: (3, [8, 8, 8]), 262: (3, 6), 277: (3, 3)}
    data = assembled(tags | {259: (3, 7), 530: (3, [1, 1])}, [part], tile=tile)
    if size == (SIDE, SIDE):
        assert difference(decoded(data, WHOLE), picture(SIDE, SIDE)) <= 12
    else:
        assert refusal(data) is Code.BROKEN_IMAGE


def test_inks_that_are_not_cmyk_are_refused() -> None:
    layout = Layout(CMYK, 8, tags={332: (3, 2)})
    assert "this is TIFF of CMYK" in named(written(layout, samples(layout)))


@pytest.mark.parametrize(
    ("method", "name"), [(34712, "JPEG 2000"), (50001, "WebP"), (34887, "LERC"), (34661, "JBIG"), (777, "method 777")]
)
def test_a_compression_that_is_not_decoded_is_named(method: int, name: str) -> None:
    layout = Layout(tags={259: (3, method)})
    assert f"this is TIFF compressed by {name}" in named(written(layout, samples(layout)))


# Cameras' raw files: the first picture is a thumbnail, or none


def camera_file(main: dict[int, tuple[int, Any]], sub: dict[int, tuple[int, Any]] | None = None) -> bytes:
    """A thumbnail in RGB, and optionally a sub-directory."""
    layout = Layout(RGB, 8)
    thumbnail = samples(layout)
    if sub is None:
        return written(replace(layout, tags=main), thumbnail)
    without = written(replace(layout, tags={**main, 330: (4, 0)}), thumbnail)
    at = len(without) + len(without) % 2
    rows = [struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(sub.items())]
    directory = struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4)
    return written(replace(layout, tags={**main, 330: (4, at)}), thumbnail).ljust(at, b"\0") + directory


SENSOR = {254: (4, 0), 256: (4, 4000), 257: (4, 3000), 262: (3, 32803)}


@pytest.mark.parametrize(
    "data",
    [
        camera_file({50706: (1, b"\1\4\0\0"), 254: (4, 1)}),
        camera_file({50706: (1, b"\1\4\0\0")}),
        camera_file({254: (4, 1)}, SENSOR),
        camera_file({}, SENSOR),
        camera_file({254: (4, 1)}, {254: (4, 0), 262: (3, 6)}),
        camera_file({262: (3, 32803)}),
        camera_file({262: (3, 34892)}),
        b"II*\0\x10\0\0\0CR\2\0" + camera_file({})[12:],
    ],
    ids=["DNG", "DNG of one", "NEF", "ARW", "reduced", "sensor", "linear", "CR2"],
)
def test_a_raw_file_is_not_classified_by_its_thumbnail(data: bytes) -> None:
    assert "this is a camera's raw file" in named(data)


def test_what_is_but_scaled_down_is_no_raw_file() -> None:
    """Neither is a file with other pages, or with those of a pyramid."""
    layout = Layout(RGB, 8, tags={254: (4, 1)})
    assert difference(decoded(written(layout, samples(layout)), WHOLE), samples(layout)) == 0
    assert difference(decoded(camera_file({}, {254: (4, 1), 262: (3, 2)}), WHOLE), samples(layout)) == 0


def test_orientation_is_that_of_the_tag_alone() -> None:
    xmp = b'<x:xmpmeta xmlns:tiff="t"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    for compression in (None, "tiff_lzw"):
        upright: Pixels = decoded(encoded(picture(), "TIFF", compression=compression))
        assert (
            difference(decoded(encoded(picture(), "TIFF", compression=compression, tiffinfo={700: xmp})), upright) == 0
        )
        image = Image.open(io.BytesIO(encoded(picture(), "TIFF", tiffinfo={700: xmp})))
        assert image.getexif()[274] == 6  # as Pillow sees it
