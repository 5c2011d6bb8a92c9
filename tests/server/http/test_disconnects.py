"""`cancelled_when_gone`, without a server."""

import asyncio
import gc
import weakref

from fastapi import Request

from server.http.disconnects import cancelled_when_gone


async def _answered_to(request: Request) -> None:
    async with cancelled_when_gone(request):
        await asyncio.sleep(0)  # the watch begins
    await asyncio.sleep(0)  # and ends


def test_a_request_that_was_watched_is_no_work_for_the_garbage_collector() -> None:
    async def answer() -> None:
        request = Request({"type": "http"}, asyncio.Event().wait)  # type: ignore[arg-type]  # nothing is received
        left = weakref.ref(request)
        gc.disable()
        try:
            await _answered_to(request)
            del request
            assert left() is None
        finally:
            gc.enable()

    asyncio.run(answer())
