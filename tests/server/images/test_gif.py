"""The first frame of a GIF, at its place on the canvas, over white."""

import struct

import numpy as np
import pytest
from PIL import Image

from server.errors import Code
from tests.server.images.pictures import decoded, difference, encoded, preprocessing, refusal

SIDE = 32
WHOLE = preprocessing(SIDE, SIDE)
RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def gif(box: tuple[int, int, int, int], *, canvas: int = SIDE, control: bytes = b"", own: bool = False) -> bytes:
    """One frame of colour 1, red, on a canvas whose background is colour 2, blue; colour 0 is green."""
    left, top, right, bottom = box
    frame = Image.new("P", (right - left, bottom - top), 1)
    palette = [*GREEN, *RED, *BLUE, 9, 9, 9]
    frame.putpalette(palette)
    stored = encoded(frame, "GIF", optimize=False)
    pixels = stored[stored.index(b",") + 10 :]
    if stored[stored.index(b",") + 9] & 0x80:
        raise ValueError("a palette of its own")
    colours = bytes(palette)
    screen = struct.pack("<HHBBB", canvas, canvas, 0 if own else 0x81, 2, 0) + (b"" if own else colours)
    descriptor = b"," + struct.pack("<HHHHB", left, top, right - left, bottom - top, 0x81 if own else 0)
    return b"GIF89a" + screen + control + descriptor + (colours if own else b"") + pixels


CONTROLS = {
    "none": b"",
    "transparent": b"!\xf9\4\1\0\0\0\0",
    "another transparent": b"!\xf9\4\1\0\0\2\0",
    "to background": b"!\xf9\4\x08\0\0\0\0",
    "to previous": b"!\xf9\4\x0c\0\0\0\0",
}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("box", [(4, 6, 20, 30), (0, 0, 16, 32), (31, 31, 32, 32), (0, 0, 32, 32)])
def test_what_the_first_frame_does_not_cover_is_white(
    box: tuple[int, int, int, int], control: str, *, own: bool
) -> None:
    """As browsers show it: neither colour 0 nor the background's."""
    left, top, right, bottom = box
    expected = np.full((SIDE, SIDE, 3), 255)
    expected[top:bottom, left:right] = RED
    assert difference(decoded(gif(box, control=CONTROLS[control], own=own), WHOLE), expected) == 0


def test_what_the_frame_hides_itself_is_white_as_well() -> None:
    out = decoded(gif((4, 6, 20, 30), control=b"!\xf9\4\1\0\0\1\0"), WHOLE)
    assert difference(out, (255, 255, 255)) == 0


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_a_picture_without_a_palette_is_refused(control: bytes) -> None:
    data = gif((0, 0, SIDE, SIDE), own=True, control=control)
    at = data.index(b",") + 9
    assert refusal(data[:at] + b"\0" + data[at + 13 :]) is Code.BROKEN_IMAGE


def test_a_frame_beyond_the_canvas_makes_it_larger() -> None:
    out = decoded(gif((0, 0, SIDE, SIDE), canvas=8), WHOLE)
    assert difference(out, RED) == 0
