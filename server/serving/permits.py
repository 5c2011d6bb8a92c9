"""How the images of batches get permits beside single requests: some at a time, and as permits become free."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Permits:
    """Half of one process's permits, for the images of all batches together; single requests may take any.

    So a batch never keeps single requests out, and is never refused for being larger than what is free.
    """

    def __init__(self, total: int) -> None:
        self._limit = max(1, total // 2)
        self._taken = 0
        self._turns = asyncio.Lock()
        self._retries = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def taken(self, count: int) -> AsyncGenerator[None]:
        """Take `count` permits, in turn; more than half of all only while no other image of a batch has any."""
        async with self._turns:  # who needs many is not overtaken for ever by those who need few
            while self._taken and self._taken + count > self._limit:
                await self._change()
            self._taken += count
        try:
            yield
        finally:
            self._taken -= count
            self.changed()

    async def retry(self) -> None:
        """Wait, in turn, until it is worth a new try, single requests having taken all permits."""
        async with self._retries:
            await self._change()

    def changed(self) -> None:
        """There may be a free permit."""
        self._freed.set()

    async def _change(self) -> None:
        self._freed.clear()
        await self._freed.wait()
