"""An open loop: requests come when they come (Poisson), whether or not earlier ones have been answered.

A closed loop waits for a slow server and so never overloads it. Here the latency of an answer counts from the moment at
which its request was due, so that a late generator cannot hide waiting.
"""

import asyncio
import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Generic, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from loadtest import answers
from loadtest.answers import WrongAnswerError
from loadtest.client import LENGTH, Parse, Photo, Reading

IDLE_S = 2.0
"""A connection that was idle for longer is not used again: the server may just be closing it."""
PATIENCE_S = 15.0
"""How long after its deadline an answer is still waited for; then the request counts as lost."""


@dataclass(slots=True)
class Outcomes:
    """What became of the requests that were due in the window; each has exactly one outcome."""

    due: int = 0
    good_s: list[float] = field(default_factory=list)
    """latencies of right answers within the deadline"""
    late_s: list[float] = field(default_factory=list)
    """latencies of right answers after it"""
    refused_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """by code, latencies of errors; only they count from the moment of sending: how soon does the server say no?"""
    wrong: int = 0
    lost: int = 0
    """sent, and never answered"""
    unsent: int = 0
    """no socket was free: the client's bound, not the server's answer"""


class OpenWindow(NamedTuple, Generic[Reading]):
    """What was measured between two readings of the caller's meters."""

    before: Reading
    after: Reading
    seconds: float
    outcomes: Outcomes
    lateness_s: list[float]
    """by which requests were sent, or a connection for them was opened, after they were due"""
    most_sockets: int
    faults: Counter[str]
    """Wrong answers and lost connections, also outside the window."""


class _Call(NamedTuple):
    photo: Photo
    due_s: float
    outcomes: Outcomes


@dataclass(slots=True)
class OpenLoop:
    """Sends at a rate over at most `sockets` keep-alive connections; the last one used is used first."""

    url: str
    photos: Iterable[Photo]
    deadline_s: float
    sockets: int = 512
    parse: Parse = answers.parse
    _idle: list["_Connection"] = field(default_factory=list)
    _open: set["_Connection"] = field(default_factory=set)
    _opening: set[asyncio.Task[None]] = field(default_factory=set)
    _waiting: deque[_Call] = field(default_factory=deque)  # each for a connection that is being opened
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)  # no request waits or is under way
    _under_way: int = 0
    _most: int = 0
    _faults: Counter[str] = field(default_factory=Counter)

    async def run(
        self,
        per_s: float,
        warm_up_s: float,
        seconds: float,
        read_meters: Callable[[], Reading],
        *,
        seed: int = 0,
        tail_s: float | None = None,
    ) -> OpenWindow[Reading]:
        """Run once, and count the requests that are due in the `seconds` after the warm-up.

        Requests go on for `tail_s` after that, if not for a deadline, so that the last that count meet the same load as
        the first.
        """
        tail_s = self.deadline_s if tail_s is None else tail_s
        window, rest = Outcomes(), Outcomes()
        ends_s = warm_up_s + seconds
        count = int(1.5 * per_s * (ends_s + tail_s)) + 100
        due_s = np.cumsum(np.random.default_rng(seed).exponential(1 / per_s, count))
        photos, lateness_s, started_s = cycle(self.photos), [], time.perf_counter()
        reading = asyncio.create_task(_read_twice(read_meters, started_s + warm_up_s, seconds))
        for at_s in due_s[due_s < ends_s + tail_s].tolist():
            counts = warm_up_s <= at_s < ends_s
            # Also where it is late: answers must be read, too.
            await asyncio.sleep(max(0.0, started_s + at_s - time.perf_counter()))
            self._send(_Call(next(photos), started_s + at_s, window if counts else rest))
            if counts:
                window.due += 1
                lateness_s.append(time.perf_counter() - started_s - at_s)
        before, after = await reading
        await self._end()
        return OpenWindow(before, after, seconds, window, lateness_s, self._most, self._faults)

    def _send(self, call: _Call) -> None:
        now_s = time.perf_counter()
        self._under_way += 1
        self._quiet.clear()
        while self._idle:
            connection = self._idle.pop()
            if now_s - connection.idle_since_s < IDLE_S:
                connection.send(call)
                return
            connection.close()
        if len(self._open) + len(self._opening) >= self.sockets:
            self._give_up(call)  # to wait here would make it late by our own doing
            return
        self._waiting.append(call)
        opening = asyncio.create_task(self._connect())
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        self._most = max(self._most, len(self._open) + len(self._opening))

    async def _connect(self) -> None:
        parts = urlsplit(self.url)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), parts.hostname or "", parts.port or 80
            )
        except OSError as error:
            if self._waiting:
                self._lose(self._waiting.popleft(), f"no connection: {error!r}")

    async def _end(self) -> None:
        """Wait for what is under way; what then has no answer is lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.deadline_s + PATIENCE_S):
                await self._quiet.wait()
        while self._waiting:
            self._give_up(self._waiting.popleft())
        closing = [connection.closed for connection in self._open]
        for connection in list(self._open):
            connection.close()
        await asyncio.gather(*closing, *self._opening)

    def opened(self, connection: "_Connection") -> None:
        """A connection can be used for the first time."""
        self._open.add(connection)
        self.ready(connection)

    def ready(self, connection: "_Connection") -> None:
        """A connection can be used, for the first time or again."""
        if self._waiting:
            connection.send(self._waiting.popleft())
            return
        connection.idle_since_s = time.perf_counter()
        self._idle.append(connection)

    def gone(self, connection: "_Connection", error: Exception | None) -> None:
        """A connection is closed, by whomever."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.call:
            self._lose(connection.call, f"connection lost: {error!r}")

    def answered(self, call: _Call, sent_s: float, status: int, body: bytes) -> None:
        """A request has its answer."""
        self._ended()
        now_s = time.perf_counter()
        took_s = now_s - call.due_s
        outcomes = call.outcomes
        if status != 200:
            outcomes.refused_s[_code(status, body)].append(now_s - sent_s)
            return
        try:
            top1 = self.parse(status, body).top1
            if top1 != call.photo.top1:
                raise WrongAnswerError(f"class {top1} for a photo that was first found to be {call.photo.top1}")
        except WrongAnswerError as error:
            outcomes.wrong += 1
            self._faults[str(error)] += 1
            return
        (outcomes.good_s if took_s <= self.deadline_s else outcomes.late_s).append(took_s)

    def _lose(self, call: _Call, reason: str) -> None:
        self._ended()
        call.outcomes.lost += 1
        self._faults[reason] += 1

    def _give_up(self, call: _Call) -> None:
        self._ended()
        call.outcomes.unsent += 1

    def _ended(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._quiet.set()


class _Connection(asyncio.Protocol):
    """Sends one request at a time and reads its answer."""

    def __init__(self, loop: OpenLoop) -> None:
        self.call: _Call | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.idle_since_s = 0.0
        self._sent_s = 0.0
        self._loop = loop
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a stream's
        self._loop.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._loop.gone(self, exc)
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[: end + 2]
        length = LENGTH.search(head)
        if length is None or self.call is None:
            self.close()
            return
        last = end + 4 + int(length[1])
        if len(self._received) < last:
            return
        body, self._received = self._received[end + 4 : last], b""
        call, self.call = self.call, None
        self._loop.answered(call, self._sent_s, int(head[9:12]), body)
        if b"\r\nconnection: close\r\n" in head.lower():
            self.close()
        else:
            self._loop.ready(self)

    def send(self, call: _Call) -> None:
        """Send a request; of one that was refused early, the body may still be on its way, and goes first."""
        self.call = call
        self._sent_s = time.perf_counter()
        self._transport.write(call.photo.request)

    def close(self) -> None:
        """Close it; what it carries is lost."""
        self._transport.abort()


async def _read_twice(read_meters: Callable[[], Reading], at_s: float, seconds: float) -> tuple[Reading, Reading]:
    await asyncio.sleep(at_s - time.perf_counter())
    before = read_meters()
    await asyncio.sleep(at_s + seconds - time.perf_counter())
    return before, read_meters()


def _code(status: int, body: bytes) -> str:
    """The `code` of a problem document; of other errors the status."""
    try:
        return str(json.loads(body)["code"])
    except (ValueError, LookupError, TypeError):
        return f"status {status}"
