"""Heat maps over photos, one at a time."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from server.images import heatmap
from server.serving.drawing import Drawing

PATIENCE_S = 10.0


def test_a_photo_is_drawn_alone_even_if_the_client_of_the_one_before_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, other_begun = threading.Event(), threading.Event()
    was_alone: list[bool] = []

    def overlaid(image: bytes, *_: Any) -> bytes:
        if image == b"other":
            other_begun.set()
        else:
            begun.set()
            was_alone.append(not other_begun.wait(0.2))
        return image

    async def scene() -> None:
        drawing, values = Drawing(max_pixels=1), np.ones((1, 1), np.float32)
        leaving = asyncio.create_task(drawing.draw(b"one", (1, 1), values, (0, 0, 1, 1)))
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        leaving.cancel()
        assert await drawing.draw(b"other", (1, 1), values, (0, 0, 1, 1)) == b"other"
        assert was_alone == [True]

    monkeypatch.setattr(heatmap, "overlaid", overlaid)
    asyncio.run(scene())
