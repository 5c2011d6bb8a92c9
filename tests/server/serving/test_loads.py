"""How the requests of one process wait for models to load, and what it tells the supervisor."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from server.control import Demand
from server.errors import Code, ServiceError
from server.serving.loads import Loads

SOON_S = 60.0


class Process:
    """An HTTP process: its messages to the supervisor, and its waiting requests."""

    def __init__(self, *usable: str, most_waiting: int = 8) -> None:
        self.told: list[Demand] = []
        self.change = asyncio.Event()
        self.running: list[str] = []
        self.loads = Loads(self.told.append, lambda: self.running, most_waiting=most_waiting)
        self.loads.update({*usable}, {})

    async def request(self, *models: str, within_s: float = SOON_S, patient: bool = False) -> None:
        deadline_s = time.monotonic() + within_s
        while not self.loads.begin(models):
            await self.loads.wait(models, self.change, deadline_s, patient=patient)

    def update(self, *usable: str, loading: dict[str, float] | None = None) -> None:
        self.loads.update({*usable}, loading or {})
        self.change.set()
        self.change = asyncio.Event()


def run(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, SOON_S))


async def settled() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_request_for_what_is_loaded_begins_at_once_and_is_told_of_when_it_is_time() -> None:
    async def scene() -> None:
        process = Process("a", "b")
        for model in "aba":
            await process.request(model)
        assert process.told == []
        process.loads.tell()
        process.loads.tell()
        assert process.told == [Demand(frozenset(), ("b", "a"))]

    run(scene())


def test_requests_wait_together_and_the_supervisor_is_told_once_when_they_begin_and_when_they_end() -> None:
    async def scene() -> None:
        process = Process("a")
        waiting = [asyncio.ensure_future(process.request("b")) for _ in range(5)]
        await settled()
        assert process.told == [Demand(frozenset("b"), ("b",))]
        assert (process.loads.state("b"), process.loads.state("ab"), process.loads.state("c")) == (
            "loading",
            "loading",
            "unloaded",
        )
        process.update("a", loading={"b": 1.0})  # not yet
        await settled()
        assert len(process.told) == 1
        process.running = ["a"]
        process.update("a", "b")
        await asyncio.gather(*waiting)
        await settled()
        assert process.told[1:] == [Demand(frozenset(), ("b", "a"))]  # running requests use their model

    run(scene())


def test_who_gives_up_is_waited_for_no_more() -> None:
    async def scene() -> None:
        process = Process()
        leaves = asyncio.ensure_future(process.request("a", "b"))
        await settled()
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        await settled()
        assert [demand.waiting for demand in process.told] == [frozenset("ab"), frozenset()]

    run(scene())


def test_who_waits_too_long_is_told_how_long_the_load_takes() -> None:
    async def scene() -> None:
        process = Process()
        process.update(loading={"a": 2.5, "b": 4.0})
        with pytest.raises(ServiceError) as refused:
            await process.request("a", "b", within_s=0)
        assert (refused.value.code, refused.value.retry_after_s) == (Code.DEADLINE_EXCEEDED, 7)
        with pytest.raises(ServiceError) as refused:
            await process.request("c", within_s=0)
        assert refused.value.retry_after_s == 1

    run(scene())


def test_no_more_requests_wait_than_there_are_places_but_for_those_that_can() -> None:
    async def scene() -> None:
        process = Process(most_waiting=2)
        waiting = [asyncio.ensure_future(process.request("a")) for _ in range(2)]
        await settled()
        with pytest.raises(ServiceError) as refused:
            await process.request("b")
        assert refused.value.code is Code.QUEUE_FULL
        waiting.append(asyncio.ensure_future(process.request("b", patient=True)))
        await settled()
        process.update("a", "b")
        await asyncio.gather(*waiting)

    run(scene())
