"""The first frame of a WebP animation, at its place on the canvas, over white."""

import struct

import numpy as np
import pytest
from PIL import Image

from tests.server.images.pictures import decoded, difference, encoded, preprocessing

SIDE = 32
WHOLE = preprocessing(SIDE, SIDE)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def animation(box: tuple[int, int, int, int], *, alpha: bool) -> bytes:
    """A red frame, then one of full size, on a canvas with a blue background."""
    left, top, right, bottom = box
    frames = [(left, top, right - left, bottom - top), (0, 0, SIDE, SIDE)]
    flags = 0x02 | 0x10 * alpha
    body = chunk(b"VP8X", struct.pack("<I", flags) + number(SIDE - 1) * 2) + chunk(b"ANIM", bytes((*BLUE, 255, 0, 0)))
    for x, y, width, height in frames:
        picture = encoded(Image.new("RGB", (width, height), RED), "WEBP", lossless=True)[12:]
        place = b"".join(map(number, (x // 2, y // 2, width - 1, height - 1, 100)))
        body += chunk(b"ANMF", place + b"\0" + picture)
    return chunk(b"RIFF", b"WEBP" + body)


def number(value: int) -> bytes:
    return value.to_bytes(3, "little")


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("box", [(4, 6, 20, 30), (0, 0, 16, 32), (30, 30, 32, 32), (0, 0, 32, 32)])
def test_what_the_first_frame_does_not_cover_is_white(box: tuple[int, int, int, int], *, alpha: bool) -> None:
    """As browsers show it: neither black nor the background's colour."""
    left, top, right, bottom = box
    expected = np.full((SIDE, SIDE, 3), 255)
    expected[top:bottom, left:right] = RED
    assert difference(decoded(animation(box, alpha=alpha), WHOLE), expected) == 0
