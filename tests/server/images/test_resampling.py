"""The graph computes what Pillow does."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from models.manifest import Interpolation
from server.images import resampling

FILTERS: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
SESSIONS = {name: ort.InferenceSession(resampling.graph(name)) for name in FILTERS}


@st.composite
def intervals(draw: st.DrawFn) -> tuple[int, float, float]:
    """A length in pixels, and a part of it that is a pixel long or longer."""
    length = draw(st.integers(1, 300))
    start = draw(st.floats(0, length - 1))
    return length, start, draw(st.floats(min(start + 1, length), length))


@pytest.mark.parametrize("interpolation", FILTERS)
@settings(max_examples=150, deadline=None)
@given(
    across=intervals(),
    down=intervals(),
    size=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    padding=st.integers(0, 40),
    seed=st.integers(0, 99),
)
@example(across=(32, 0, 32), down=(32, 0, 32), size=(32, 32), padding=0, seed=0)
@example(across=(1600, 160.5, 1200), down=(1200, 60, 1080), size=(224, 160), padding=32, seed=0)
@example(across=(20, 0, 20), down=(2000, 800, 820), size=(50, 50), padding=0, seed=0)
def test_any_part_of_any_picture_becomes_what_pillow_makes_of_it(
    interpolation: Interpolation,
    across: tuple[int, float, float],
    down: tuple[int, float, float],
    size: tuple[int, int],
    padding: int,
    seed: int,
) -> None:
    (width, left, right), (height, top, bottom) = across, down
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    # In two steps: in one, Pillow may take the other pass first, and bicubic is clipped between them.
    narrow = Image.fromarray(noise).resize((size[0], height), FILTERS[interpolation], (left, 0, right, height))
    expected = np.asarray(narrow.resize(size, FILTERS[interpolation], (0, top, size[0], bottom)))
    planes = np.pad(noise.transpose(2, 0, 1), ((0, 0), (0, 0), (0, padding)), constant_values=255)
    box = left, top, right, bottom
    known = resampling.inputs((width, height), box, size, interpolation)
    (found,) = SESSIONS[interpolation].run([resampling.PIXELS], {resampling.PLANES: planes, **known})
    assert found.shape == (size[1], size[0], 3)
    # If a value between the passes is rounded the other way, bicubic's overshoot can double the difference.
    assert np.abs(found.astype(int) - expected).max() <= (1 if interpolation == "bilinear" else 2)
