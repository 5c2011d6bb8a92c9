"""Permits for the images of batch requests, one event at a time."""

import asyncio
from contextlib import AsyncExitStack

from server.serving.permits import Permits


async def settled() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class Image:
    """Takes permits until it is told to leave."""

    def __init__(self, permits: Permits, count: int) -> None:
        self.inside = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(permits, count))

    async def _stay(self, permits: Permits, count: int) -> None:
        async with permits.taken(count):
            self.inside = True
            await self._leave.wait()
        self.inside = False

    def leave(self) -> None:
        self._leave.set()


def test_batches_take_half_of_the_permits_in_turn() -> None:
    async def scenario() -> None:
        permits = Permits(6)
        images = [Image(permits, count) for count in (1, 1, 3, 1, 1)]
        await settled()
        assert [image.inside for image in images] == [True, True, False, False, False]  # the third goes first
        images[0].leave()
        await settled()
        assert [image.inside for image in images[2:]] == [False, False, False]
        images[1].leave()
        await settled()
        assert [image.inside for image in images[2:]] == [True, False, False]
        images[2].leave()
        await settled()
        assert [image.inside for image in images[3:]] == [True, True]
        for image in images:
            image.leave()
        await asyncio.gather(*(image.task for image in images))

    asyncio.run(scenario())


def test_an_image_that_needs_more_than_half_goes_alone() -> None:
    async def scenario() -> None:
        permits = Permits(2)
        first, large, last = (Image(permits, count) for count in (1, 2, 1))
        await settled()
        assert (first.inside, large.inside, last.inside) == (True, False, False)
        first.leave()
        await settled()
        assert (large.inside, last.inside) == (True, False)
        large.leave()
        await settled()
        assert last.inside
        last.leave()
        await last.task

    asyncio.run(scenario())


def test_who_is_cancelled_while_waiting_or_inside_leaves_no_permit_taken() -> None:
    async def scenario() -> None:
        permits = Permits(2)
        images = [Image(permits, 1) for _ in range(4)]
        await settled()
        for image in (images[1], images[0]):  # the first in the queue, then the one inside
            image.task.cancel()
            await settled()
        assert [image.inside for image in images[2:]] == [True, False]
        images[2].leave()
        await settled()
        assert images[3].inside
        images[3].leave()
        await images[3].task

    asyncio.run(scenario())


def test_retries_go_one_at_a_time_and_none_is_forgotten() -> None:
    async def scenario() -> None:
        permits = Permits(8)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(permits.taken(1))
            waiting = [asyncio.create_task(permits.retry()) for _ in range(3)]
            for done in range(3):
                await settled()
                assert [task.done() for task in waiting] == [n < done for n in range(3)]
                permits.changed()
            await asyncio.gather(*waiting)

    asyncio.run(scenario())
