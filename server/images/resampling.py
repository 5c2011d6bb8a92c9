"""What Pillow's `Image.resize(size, filter, box)` computes, as an ONNX graph: two products with matrices of weights.

A GPU makes large dense products faster than it could skip their zeros, and no kernel has to be written for it. Weights
are floats here and 22-bit fractions there: some values are rounded the other way and differ by one.
"""

import onnx.parser

from models.manifest import Interpolation

PLANES, BOX, SIZES, PIXELS = "planes", "box", "sizes", "pixels"
"""uint8[3, H, S >= W], of which W columns are the picture; left, top, right, bottom as float32[4]; W and crop as
int64[2]; and what comes of them, uint8[crop, crop, 3]."""

# By the distance of two pixels' centres, in source pixels, or in target pixels where those are larger. As Pillow's
# Resample.c has it, with a = -0.5.
_KERNELS: dict[Interpolation, str] = {
    "bilinear": """
        hat = Sub (one, distance)
        raw = Relu (hat)""",
    "bicubic": """
        near_1 = Mul (c_1_5, distance)    near_2 = Sub (near_1, c_2_5)
        near_3 = Mul (near_2, distance)   near_4 = Mul (near_3, distance)   near = Add (near_4, one)
        far_1 = Mul (c_0_5, distance)     far_2 = Sub (c_2_5, far_1)        far_3 = Mul (far_2, distance)
        far_4 = Sub (far_3, c_4)          far_5 = Mul (far_4, distance)     far = Add (far_5, c_2)
        is_near = Less (distance, one)    is_far = Less (distance, c_2)
        rest = Where (is_far, far, zero)  raw = Where (is_near, near, rest)""",
}


def graph(interpolation: Interpolation) -> bytes:
    """The model, with the inputs PLANES, BOX and SIZES and the output PIXELS."""
    return onnx.parser.parse_model(_TEXT % _KERNELS[interpolation]).SerializeToString()


_TEXT = """
<ir_version: 10, opset_import: ["": 20, "resampling": 1]>
resize (uint8[3, H, S] planes, float[4] box, int64[2] sizes) => (uint8[C, C, 3] pixels)
<int64 i_0 = {0}, int64 i_1 = {1}, int64[1] at_0 = {0}, int64[1] at_2 = {2}>
{
    width = Gather (sizes, i_0)  crop = Gather (sizes, i_1)
    rows = Shape <start = 1, end = 2> (planes)  height = Squeeze (rows)
    left = Gather (box, i_0)
    start, end = Split <axis = 0, num_outputs = 2> (box)  top = Gather (start, i_1)
    right = Gather (end, i_0)  bottom = Gather (end, i_1)
    columns = Unsqueeze (width, at_0)
    stored = Cast <to = 1> (planes)
    picture = Slice (stored, at_0, columns, at_2)
    across = resampling.weights (width, crop, left, right)
    across_t = Transpose <perm = [1, 0]> (across)
    narrow = MatMul (picture, across_t)
    narrow_levels = resampling.levels (narrow)
    down = resampling.weights (height, crop, top, bottom)
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
weights (length, crop, start, end) => (normal)
{
    zero = Constant <value = float {0.0}> ()   half = Constant <value = float {0.5}> ()
    one = Constant <value = float {1.0}> ()    c_0_5 = Constant <value = float {0.5}> ()
    c_1_5 = Constant <value = float {1.5}> ()  c_2_5 = Constant <value = float {2.5}> ()
    c_2 = Constant <value = float {2.0}> ()    c_4 = Constant <value = float {4.0}> ()
    i_0 = Constant <value = int64 {0}> ()      i_1 = Constant <value = int64 {1}> ()
    last = Constant <value_ints = [-1]> ()
    targets = Cast <to = 1> (crop)
    extent = Sub (end, start)
    scale = Div (extent, targets)
    target = Range (i_0, crop, i_1)   target_f = Cast <to = 1> (target)  target_centre = Add (target_f, half)
    source = Range (i_0, length, i_1) source_f = Cast <to = 1> (source)  source_centre = Add (source_f, half)
    scaled = Mul (target_centre, scale)
    moved = Add (scaled, start)
    column = Unsqueeze (moved, last)
    apart = Sub (source_centre, column)
    unit = Max (scale, one)
    relative = Div (apart, unit)
    distance = Abs (relative)
    %s
    total = ReduceSum (raw, last)
    normal = Div (raw, total)
}
"""
