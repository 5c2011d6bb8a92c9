"""Shares permits between the images of batches and single requests."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Permits:
    """Half of one process's permits, for the images of all batches together; single requests may take any permit.

    So a batch never locks out single requests. Its images wait for permits in turn, however many it has.
    """

    def __init__(self, total: int) -> None:
        self._limit = max(1, total // 2)
        self._taken = 0
        self._turns = asyncio.Lock()
        self._retries = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def taken(self, count: int) -> AsyncGenerator[None]:
        """Take `count` permits, in turn. More than half of all are given only while no other image has any."""
        async with self._turns:  # in turn: images that need few permits must not overtake one that needs many for ever
            while self._taken and self._taken + count > self._limit:
                await self._change()
            self._taken += count
        try:
            yield
        finally:
            self._taken -= count
            self.changed()

    async def retry(self) -> None:
        """After single requests have taken all permits, wait, in turn, until one may be free again."""
        async with self._retries:
            await self._change()

    def changed(self) -> None:
        """Note that a permit may have become free."""
        self._freed.set()

    async def _change(self) -> None:
        self._freed.clear()
        await self._freed.wait()
