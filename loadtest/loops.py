"""Load on a server: a closed loop waits for each answer before it sends the next request, an open loop does not.

A closed loop waits for a slow server and so never overloads it. In an open loop requests arrive at random (Poisson),
and latency counts from the moment a request was due, so that a late generator cannot hide waiting. Every answer is
checked.
"""

import asyncio
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, takewhile
from typing import Generic, NamedTuple, TypeVar

from loadtest import responses
from loadtest.connection import JPEG, Connection, connect, request
from loadtest.responses import Parse, WrongAnswerError

LAST_ANSWERS_S = 60.0
"""How long outstanding answers are awaited when a closed loop ends."""
PATIENCE_S = 15.0
"""How long after its deadline an answer is still awaited; then the request counts as lost."""

Reading = TypeVar("Reading")


class Target(NamedTuple):
    """Where photos are posted, and how the answers are read."""

    url: str
    headers: Mapping[str, str] = JPEG
    parse: Parse = responses.parse


@dataclass(slots=True)
class Photo:
    """A photo as a complete HTTP request, and the class that the server first gave it."""

    request: bytes
    top1: int


class Window(NamedTuple, Generic[Reading]):
    """The answers between two readings of the caller's meters."""

    before: Reading
    after: Reading
    seconds: float
    latencies_s: list[float]
    batch_sizes: list[int]
    faults: Counter[str]
    """Includes those of the warm-up, and of requests still under way at the end."""


def poisson(per_s: float, chance: random.Random) -> Iterator[float]:
    """Seconds from now at which requests are due, with exponential gaps, endlessly."""
    at_s = 0.0
    while True:
        at_s += chance.expovariate(per_s)
        yield at_s


async def ask_alone(target: Target, images: Iterable[bytes]) -> tuple[str, list[Photo]]:
    """Send each photo once, alone, to learn the class that it must keep under load. Returns the model's name, too.

    Raises:
        WrongAnswerError: see `Target.parse`.
        OSError: the connection is broken.
    """
    sent: list[Photo] = []
    model = ""
    async with connect(target.url) as connection:
        for image in images:
            content = request(target.url, image, target.headers)
            answer = target.parse(*await connection.ask(content))
            sent.append(Photo(content, answer.top1))
            model = answer.model
    return model, sent


async def closed_loop(
    target: Target,
    photos: Iterable[Photo],
    connections: int,
    warm_up_s: float,
    seconds: float,
    read_meters: Callable[[], Reading],
) -> Window[Reading]:
    """On each connection, send the next photo as soon as the last is answered; count `seconds` after the warm-up.

    Raises:
        TimeoutError: outstanding answers did not come within LAST_ANSWERS_S.
    """
    latencies_s: list[float] = []
    batch_sizes: list[int] = []
    faults: Counter[str] = Counter()
    ending = asyncio.Event()
    turns = cycle(photos)

    async def send() -> None:
        try:
            async with connect(target.url) as connection:
                while not ending.is_set():
                    photo, started_s = next(turns), time.perf_counter()
                    response = await connection.ask(photo.request)
                    try:
                        answer = target.parse(*response)
                    except WrongAnswerError as error:
                        faults[str(error)] += 1
                        continue
                    latencies_s.append(time.perf_counter() - started_s)
                    batch_sizes.append(answer.batch_size)
                    if answer.top1 != photo.top1:
                        faults[_other_class(answer.top1, photo)] += 1
        except OSError as error:
            faults[f"connection lost: {error!r}"] += 1

    sending = asyncio.gather(*(send() for _ in range(connections)))
    await asyncio.sleep(warm_up_s)
    latencies_s.clear()
    batch_sizes.clear()
    before, started_s = read_meters(), time.perf_counter()
    await asyncio.sleep(seconds)
    after, took_s = read_meters(), time.perf_counter() - started_s
    window = Window(before, after, took_s, latencies_s.copy(), batch_sizes.copy(), faults)
    ending.set()
    await asyncio.wait_for(sending, LAST_ANSWERS_S)
    return window


@dataclass(slots=True)
class Outcomes:
    """What became of the requests that were due in the window; each has exactly one outcome."""

    due: int = 0
    good_s: list[float] = field(default_factory=list)
    """latencies of right answers within the deadline"""
    late_s: list[float] = field(default_factory=list)
    """latencies of right answers after it"""
    refused_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """latencies of errors by code, from sending, unlike the others: how soon does the server refuse?"""
    wrong: int = 0
    lost: int = 0
    """sent, and never answered"""
    unsent: int = 0
    """no socket was free: a limit of the client, not of the server"""
    lateness_s: list[float] = field(default_factory=list)
    """how long after it was due each request was taken up by the generator"""


class OpenWindow(NamedTuple, Generic[Reading]):
    """What was measured between two readings of the caller's meters."""

    before: Reading
    after: Reading
    seconds: float
    outcomes: Outcomes
    most_sockets: int
    faults: Counter[str]
    """Wrong answers and lost connections, including those outside the window."""


@dataclass(slots=True)
class OpenLoop:
    """Sends at a rate over at most `sockets` keep-alive connections; the most recently used is reused first."""

    target: Target
    photos: Iterable[Photo]
    deadline_s: float
    sockets: int = 512
    faults: Counter[str] = field(default_factory=Counter)
    """wrong answers and lost connections"""
    _idle: list[Connection] = field(default_factory=list)
    _open: set[Connection] = field(default_factory=set)
    _opening: set[asyncio.Task[None]] = field(default_factory=set)
    _waiting: deque[asyncio.Future[Connection]] = field(default_factory=deque)  # one for each connection being opened
    _most: int = 0

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

        Requests continue for `tail_s` after that (by default, for one deadline), so that the last counted requests meet
        the same load as the first.
        """
        counted, others = Outcomes(), Outcomes()
        ends_s = warm_up_s + seconds
        last_s = ends_s + (self.deadline_s if tail_s is None else tail_s)
        reading = asyncio.create_task(_read_twice(read_meters, time.perf_counter() + warm_up_s, seconds))
        await self.send(
            takewhile(lambda at_s: at_s < last_s, poisson(per_s, random.Random(seed))),  # noqa: S311
            lambda at_s: counted if warm_up_s <= at_s < ends_s else others,
        )
        before, after = await reading
        return OpenWindow(before, after, seconds, counted, self._most, self.faults)

    async def send(self, times_s: Iterable[float], outcomes: Callable[[float], Outcomes]) -> None:
        """Send a request at each of `times_s`, seconds from now, then wait for the answers.

        Each request counts in the `outcomes` of its own time.
        """
        photos, calls, started_s = cycle(self.photos), list[asyncio.Task[None]](), time.perf_counter()
        for at_s in times_s:
            # Even when late: the loop must get to read answers.
            await asyncio.sleep(max(0.0, started_s + at_s - time.perf_counter()))
            calls.append(asyncio.create_task(self._call(next(photos), started_s + at_s, outcomes(at_s))))
        await self._end(calls)

    async def _call(self, photo: Photo, due_s: float, outcomes: Outcomes) -> None:
        """Send one request, and count it under exactly one outcome."""
        outcomes.due += 1
        outcomes.lateness_s.append(time.perf_counter() - due_s)
        try:
            connection = await self._take()
        except OSError as error:
            outcomes.lost += 1
            self.faults[f"no connection: {error!r}"] += 1
            return
        except asyncio.CancelledError:
            connection = None
        if connection is None:
            outcomes.unsent += 1
            return
        sent_s = time.perf_counter()
        try:
            response = await connection.ask(photo.request)
        except (OSError, asyncio.CancelledError) as error:
            outcomes.lost += 1
            self.faults[f"connection lost: {error!r}"] += 1
            return
        self._give(connection)
        now_s = time.perf_counter()
        if response.status != 200:
            code = responses.code(response.body) or f"status {response.status}"
            outcomes.refused_s[code].append(now_s - sent_s)
            return
        try:
            top1 = self.target.parse(*response).top1
            if top1 != photo.top1:
                raise WrongAnswerError(_other_class(top1, photo))
        except WrongAnswerError as error:
            outcomes.wrong += 1
            self.faults[str(error)] += 1
            return
        took_s = now_s - due_s
        (outcomes.good_s if took_s <= self.deadline_s else outcomes.late_s).append(took_s)

    async def _take(self) -> Connection | None:
        """An idle connection, else a new one or the first to become idle; None if all sockets are busy.

        The request does not wait for a socket: that delay would be the client's, not the server's.

        Raises:
            OSError: it cannot be opened.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh:
                return connection
            connection.transport.abort()
        if len(self._open) + len(self._opening) >= self.sockets:
            return None
        opening = asyncio.create_task(self._connect())
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        self._most = max(self._most, len(self._open) + len(self._opening))
        free: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiting.append(free)
        return await free

    async def _connect(self) -> None:
        try:
            connection = await Connection.open(self.target.url)
        except OSError as error:
            if self._waiting:
                self._waiting.popleft().set_exception(error)
            return
        self._open.add(connection)
        connection.closed.add_done_callback(lambda _: self._open.discard(connection))
        self._give(connection)

    def _give(self, connection: Connection) -> None:
        """Give a new or returned connection to a waiting request, or keep it idle."""
        if self._waiting and connection.is_usable:
            self._waiting.popleft().set_result(connection)
        else:
            self._idle.append(connection)

    async def _end(self, calls: Sequence[asyncio.Task[None]]) -> None:
        """Wait for outstanding requests; those still unanswered then are lost."""
        if calls:
            _, pending = await asyncio.wait(calls, timeout=self.deadline_s + PATIENCE_S)
            self._waiting.clear()
            for call in pending:
                call.cancel()
            await asyncio.gather(*calls)  # raises unexpected errors
        for connection in self._open:
            connection.transport.abort()
        await asyncio.gather(*(connection.closed for connection in self._open), *self._opening)


def _other_class(found: int, photo: Photo) -> str:
    return f"class {found} for a photo that was first found to be {photo.top1}"


async def _read_twice(read_meters: Callable[[], Reading], at_s: float, seconds: float) -> tuple[Reading, Reading]:
    await asyncio.sleep(at_s - time.perf_counter())
    before = read_meters()
    await asyncio.sleep(at_s + seconds - time.perf_counter())
    return before, read_meters()
