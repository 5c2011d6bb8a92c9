"""Heat maps over photos, drawn in a thread."""

import asyncio

import numpy as np
from numpy.typing import NDArray

from server.images import heatmap
from server.images.heatmap import Box


class Drawing:
    """Draws one photo at a time, which bounds the memory: each is decoded once more, as a whole."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._turn = asyncio.Semaphore(1)

    async def draw(self, image: bytes, size: tuple[int, int], values: NDArray[np.float32], box: Box) -> bytes:
        """The photo with a heat map over it; see `heatmap.overlaid`."""
        await self._turn.acquire()
        drawing = asyncio.create_task(asyncio.to_thread(heatmap.overlaid, image, size, values, box, self._max_pixels))
        drawing.add_done_callback(lambda _: self._turn.release())  # the thread goes on if the request is cancelled
        return await asyncio.shield(drawing)
