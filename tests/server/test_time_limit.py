"""What `TimeLimit` ends, and what it leaves alone."""

import asyncio
from collections.abc import Coroutine

import pytest

from server.time_limit import TimeLimit


async def _limited(seconds: float) -> None:
    with TimeLimit(seconds):
        await asyncio.Event().wait()


async def _outcome(work: Coroutine[None, None, None], *, cancelled: bool = False) -> type[BaseException] | None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    if cancelled:
        task.cancel()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    return type(ended) if isinstance(ended, BaseException) else None


@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_what_takes_longer_is_ended(seconds: float) -> None:
    assert asyncio.run(_outcome(_limited(seconds))) is TimeoutError


def test_what_others_cancel_is_cancelled() -> None:
    assert asyncio.run(_outcome(_limited(1e6), cancelled=True)) is asyncio.CancelledError


def test_what_others_cancel_too_is_cancelled() -> None:
    async def both() -> None:
        with TimeLimit(0):
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.Event().wait()

    assert asyncio.run(_outcome(both())) is asyncio.CancelledError


def test_what_is_done_in_time_is_left_alone() -> None:
    async def done() -> None:
        with TimeLimit(0):
            pass
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert asyncio.run(_outcome(done())) is None


def test_the_inner_limit_leaves_the_outer_one_alone() -> None:
    async def nested() -> None:
        with TimeLimit(1e6):
            with pytest.raises(TimeoutError):
                await _limited(0)
            await asyncio.sleep(0)

    assert asyncio.run(_outcome(nested())) is None
