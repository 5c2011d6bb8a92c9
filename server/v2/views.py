"""A model by other names, for programs that want exactly one input and one output.

`NAME` alone takes either of two inputs and answers three outputs. `NAME:VIEW` is the same model with the view's one
input and one output: the probability of each class, in the order of the classes. No model's own name has a colon.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.manifest import INPUT_NAME, Entry
from server.errors import Code, ServiceError
from server.v2.tensors import InputType

ENCODED_NAME = "encoded"
"""Input: BYTES[N, 1], one compressed image per element."""
SCORES_NAME = "scores"
"""Output of a view: FP32[N, classes], in the order of the classes."""


class View(StrEnum):
    """The part of a name after the colon."""

    WHOLE = ""
    ENCODED = "encoded"
    IMAGES = "images"
    INCEPTION = "inception"
    VGG = "vgg"


class Scaling(NamedTuple):
    """A client's conversion of pixels to floats, undone by pixel = value * scale + offset."""

    scale: float
    offset: tuple[float, float, float]


SCALINGS: Mapping[View, Scaling] = {
    View.INCEPTION: Scaling(127.5, (127.5, 127.5, 127.5)),
    View.VGG: Scaling(1.0, (123.0, 117.0, 104.0)),
}
"""As in Triton's example clients, under the same names."""


class Found(NamedTuple):
    """A model and the view of it that was requested."""

    entry: Entry
    view: View = View.WHOLE

    @property
    def name(self) -> str:
        """The name that was requested."""
        return f"{self.entry.name}:{self.view}" if self.view else self.entry.name


class InputSpec(NamedTuple):
    """One input of a model; `dims` leave out the batch."""

    name: str
    datatype: InputType
    dims: tuple[int, ...]


def parted(name: str) -> tuple[str, View]:
    """The model's own name, and the view.

    Raises:
        ServiceError: UNKNOWN_MODEL, there is no such view.
    """
    model, colon, view = name.partition(":")
    if not colon:
        return model, View.WHOLE
    if not view or view not in set(View):
        there_are = ", ".join(f"{model[:100]}:{each}" for each in View if each)
        raise ServiceError(Code.UNKNOWN_MODEL, f"there is no {name[:200]!r}; there are {there_are}")
    return model, View(view)


def inputs(view: View, pixels: tuple[int, int, int] | None) -> list[InputSpec]:
    """The inputs of a view; `pixels` is (H, W, 3), or None if the model takes compressed images only."""
    encoded = InputSpec(ENCODED_NAME, "BYTES", (1,))
    if view is View.ENCODED or (view is View.WHOLE and pixels is None):
        return [encoded]
    if pixels is None:
        return []
    images = InputSpec(INPUT_NAME, "FP32" if view in SCALINGS else "UINT8", pixels)
    return [images, encoded] if view is View.WHOLE else [images]


def unscaled(images: NDArray[np.float32], view: View) -> NDArray[np.uint8]:
    """Undo the view's scaling of float32[N, H, W, 3]: uint8[N, H, W, 3], rounded to the nearest whole number.

    Raises:
        ServiceError: INVALID_REQUEST, the values cannot be scaled pixels.
    """
    scale, offset = SCALINGS[view]
    with np.errstate(over="ignore", invalid="ignore"):  # the check below refuses infinite and NaN values
        pixels: NDArray[np.float32] = np.rint(images * np.float32(scale) + np.array(offset, np.float32))
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 255):
        least, most = (min(-each for each in offset) / scale, max(255 - each for each in offset) / scale)
        detail = f"{view}: pixels scaled so are {least:g} to {most:g}; these are {images.min():g} to {images.max():g}"
        raise ServiceError(Code.INVALID_REQUEST, detail)
    return pixels.astype(np.uint8)
