"""A cache of answers, so that a repeated image needs neither decoder nor engine."""

import asyncio
import hashlib
from collections import OrderedDict

from server.engine.classes import Classes

IN_THREAD_BYTES = 128 * 1024
"""Larger images, which take over 0.1 ms to hash, are hashed in a thread, not in the event loop."""

Key = tuple[bytes, tuple[str, ...], int, int, float | None, bool]
"""Everything that an answer depends on: the image's digest; a cascade's fingerprint and the ids of the models, which
change with their files and settings; top_k, crops, coverage and reject."""


class Cache:
    """The most recently used answers of one HTTP worker, at most `entries`; each takes up to 2 KiB."""

    def __init__(self, entries: int) -> None:
        """With 0 entries, nothing is cached."""
        self._entries = entries
        self._classes: OrderedDict[Key, Classes] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether the cache can hold anything."""
        return self._entries > 0

    def __len__(self) -> int:
        return len(self._classes)

    def get(self, key: Key) -> Classes | None:
        """The cached answer; None: there is none."""
        classes = self._classes.get(key)
        if classes is not None:
            self._classes.move_to_end(key)
        return classes

    def put(self, key: Key, classes: Classes) -> None:
        """Cache the classes, without their times; evict the least recently used answer if the cache is full."""
        self._classes[key] = classes._replace(
            decode_wait_s=0.0, decode_s=0.0, queue_s=0.0, inference_s=0.0, batch_size=0
        )
        self._classes.move_to_end(key)
        if len(self._classes) > self._entries:
            self._classes.popitem(last=False)


async def digest_of(image: bytes) -> bytes:
    """The image's SHA-256 digest."""
    if len(image) > IN_THREAD_BYTES:
        return await asyncio.to_thread(_digest, image)
    return _digest(image)


def _digest(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()
