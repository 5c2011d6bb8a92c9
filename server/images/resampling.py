"""Pillow's `Image.resize(size, filter, box)` as an ONNX graph: two products with matrices of weights.

A GPU computes dense products faster than it could skip their zeros, and needs no kernel of our own for them. Weights
are floats here but 22-bit fractions in Pillow, so some values are rounded the other way and differ by one.
"""

import math

import numpy as np
import onnx.parser
from numpy.typing import NDArray

from models.manifest import Interpolation
from server.images.preprocess import Box

PLANES, PIXELS = "planes", "pixels"
"""Input uint8[3, H, S], whose first W <= S columns are the picture, and output uint8[height, width, 3]."""

INTERPOLATIONS: tuple[Interpolation, ...] = ("bilinear", "bicubic")
"""There is a graph for each of these."""
_REACH: dict[Interpolation, int] = {"bilinear": 1, "bicubic": 2}
"""Largest distance at which a pixel has a weight: in source pixels, or in target pixels if those are larger."""

# The weight of a pixel by its distance, in the same unit: Resample.c of Pillow, bicubic with a = -0.5.
_WEIGHTS: dict[Interpolation, str] = {
    "bilinear": """
        hat = Sub (one, distance)
        raw = Relu (hat)""",
    "bicubic": """
        half = Constant <value = float {0.5}> ()  c_1_5 = Constant <value = float {1.5}> ()
        c_2 = Constant <value = float {2.0}> ()   c_2_5 = Constant <value = float {2.5}> ()
        c_4 = Constant <value = float {4.0}> ()   zero = Constant <value = float {0.0}> ()
        near_1 = Mul (c_1_5, distance)    near_2 = Sub (near_1, c_2_5)
        near_3 = Mul (near_2, distance)   near_4 = Mul (near_3, distance)   near = Add (near_4, one)
        far_1 = Mul (half, distance)      far_2 = Sub (c_2_5, far_1)        far_3 = Mul (far_2, distance)
        far_4 = Sub (far_3, c_4)          far_5 = Mul (far_4, distance)     far = Add (far_5, c_2)
        is_near = Less (distance, one)    is_far = Less (distance, c_2)
        rest = Where (is_far, far, zero)  raw = Where (is_near, near, rest)""",
}

_GRAPH = """
<ir_version: 10, opset_import: ["": 20, "resampling": 1]>
resize (
    uint8[3, H, S] planes, int64[2] firsts, int64[2] lasts,
    float[1, Y] rows, float[R, 1] row_centres, float[1, X] columns, float[C, 1] column_centres
) => (uint8[R, C, 3] pixels)
<int64[2] axes = {1, 2}>
{
    part = Slice (planes, firsts, lasts, axes)
    picture = Cast <to = 1> (part)
    across = resampling.weights (columns, column_centres)
    across_t = Transpose <perm = [1, 0]> (across)
    narrow = MatMul (picture, across_t)
    narrow_levels = resampling.levels (narrow)
    down = resampling.weights (rows, row_centres)
    small = MatMul (down, narrow_levels)
    small_levels = resampling.levels (small)
    interleaved = Transpose <perm = [1, 2, 0]> (small_levels)
    pixels = Cast <to = 2> (interleaved)
}
<domain: "resampling", opset_import: ["": 20]>
levels (values) => (clipped)
{
    zero = Constant <value = float {0.0}> ()  half = Constant <value = float {0.5}> ()
    most = Constant <value = float {255.0}> ()
    raised = Add (values, half)
    whole = Floor (raised)
    clipped = Clip (whole, zero, most)
}
<domain: "resampling", opset_import: ["": 20]>
weights (sources, targets) => (normal)
{
    one = Constant <value = float {1.0}> ()  last = Constant <value_ints = [1]> ()
    apart = Sub (sources, targets)
    distance = Abs (apart)
    %s
    total = ReduceSum (raw, last)
    normal = Div (raw, total)
}
"""


def graph(interpolation: Interpolation) -> bytes:
    """The ONNX model; its inputs are PLANES and those from `inputs`, its output is PIXELS."""
    return onnx.parser.parse_model(_GRAPH % _WEIGHTS[interpolation]).SerializeToString()


def inputs(
    size: tuple[int, int], box: Box, target: tuple[int, int], interpolation: Interpolation
) -> dict[str, NDArray[np.generic]]:
    """The graph's inputs, besides PLANES, for resampling the `box` of a picture; sizes are (width, height)."""
    (width, height), (left, top, right, bottom) = size, box
    first_column, last_column, columns, column_centres = _axis(left, right, width, target[0], _REACH[interpolation])
    first_row, last_row, rows, row_centres = _axis(top, bottom, height, target[1], _REACH[interpolation])
    return {
        "firsts": np.array((first_row, first_column)),
        "lasts": np.array((last_row, last_column)),
        "rows": rows[np.newaxis],
        "row_centres": row_centres[:, np.newaxis],
        "columns": columns[np.newaxis],
        "column_centres": column_centres[:, np.newaxis],
    }


def _axis(
    start: float, end: float, length: int, count: int, reach: int
) -> tuple[int, int, NDArray[np.float32], NDArray[np.float32]]:
    """First pixel with a weight, one past the last, and the centres of these pixels and of the target's."""
    scale = (end - start) / count
    unit = max(scale, 1.0)
    first = max(0, math.floor(start - reach * unit))
    last = min(length, math.ceil(end + reach * unit))
    centres = start + (np.arange(count) + 0.5) * scale
    # Relative to the first pixel, so that float32 stays precise for large photos.
    sources, targets = np.arange(last - first) + 0.5, centres - first
    return first, last, (sources / unit).astype(np.float32), (targets / unit).astype(np.float32)
