"""A closed loop over keep-alive connections, lean because it shares the CPUs with the server that it measures.

Requests are built once; of an answer's head only status and length are read. Every answer is checked.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from loadtest import answers
from loadtest.answers import Answer, WrongAnswerError

LAST_ANSWERS_S = 60.0
"""What the server is given for what is under way when a loop ends."""

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
JPEG = {"Content-Type": "image/jpeg"}

Reading = TypeVar("Reading")
Ask = Callable[[bytes], Awaitable[Answer]]
Parse = Callable[[int, bytes], Answer]


@dataclass(slots=True)
class Photo:
    """A photo as a whole HTTP request, and what it was first found to show."""

    request: bytes
    top1: int


class Window(NamedTuple, Generic[Reading]):
    """What was answered between two readings of the caller's meters."""

    before: Reading
    after: Reading
    seconds: float
    latencies_s: list[float]
    batch_sizes: list[int]
    faults: Counter[str]
    """Also those of the warm-up and of what was under way at the end."""


def request(url: str, photo: bytes, headers: Mapping[str, str] = JPEG) -> bytes:
    """`POST url` with a photo as the body."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    fields = {"Host": parts.netloc, **headers, "Content-Length": str(len(photo))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {target} HTTP/1.1\r\n{head}\r\n".encode() + photo


async def ask_alone(
    url: str, images: Iterable[bytes], headers: Mapping[str, str] = JPEG, parse: Parse = answers.parse
) -> tuple[str, list[Photo]]:
    """Send each photo once, alone: what it is found to be must not change under load. Also, the model that answers.

    Raises:
        WrongAnswerError, OSError, EOFError: as `connect`'s function.
    """
    sent: list[Photo] = []
    async with connect(url, parse) as ask:
        for image in images:
            content = request(url, image, headers)
            answer = await ask(content)
            sent.append(Photo(content, answer.top1))
    return answer.model, sent


@asynccontextmanager
async def connect(url: str, parse: Parse = answers.parse) -> AsyncGenerator[Ask]:
    """A connection, as the function that sends a request on it and waits for its answer.

    The function raises:
        WrongAnswerError: see `parse`; the connection goes on.
        OSError, EOFError: the connection is broken.
    """
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)

    async def ask(content: bytes) -> Answer:
        writer.write(content)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        if length is None:
            raise ConnectionError(f"an answer without a length: {head[:200]!r}")
        return parse(int(head[9:12]), await reader.readexactly(int(length[1])))

    try:
        yield ask
    finally:
        writer.close()


@dataclass(slots=True)
class ClosedLoop:
    """Each connection sends the next photo as soon as it has the answer to its last."""

    url: str
    photos: Iterable[Photo]
    parse: Parse = answers.parse
    _latencies_s: list[float] = field(default_factory=list)
    _batch_sizes: list[int] = field(default_factory=list)
    _faults: Counter[str] = field(default_factory=Counter)
    _going: bool = True

    async def run(
        self, connections: int, warm_up_s: float, seconds: float, read_meters: Callable[[], Reading]
    ) -> Window[Reading]:
        """Run once, and count what is answered in the `seconds` after the warm-up.

        Raises:
            TimeoutError: the last answers do not come.
        """
        photos = cycle(self.photos)
        running = asyncio.gather(*(self._send(photos) for _ in range(connections)))
        await asyncio.sleep(warm_up_s)
        self._latencies_s.clear()
        self._batch_sizes.clear()
        before, started_s = read_meters(), time.perf_counter()
        await asyncio.sleep(seconds)
        after, took_s = read_meters(), time.perf_counter() - started_s
        latencies_s, batch_sizes = self._latencies_s.copy(), self._batch_sizes.copy()
        self._going = False
        await asyncio.wait_for(running, LAST_ANSWERS_S)
        return Window(before, after, took_s, latencies_s, batch_sizes, self._faults)

    async def _send(self, photos: Iterator[Photo]) -> None:
        try:
            async with connect(self.url, self.parse) as ask:
                while self._going:
                    await self._send_one(ask, next(photos))
        except (OSError, EOFError) as error:
            self._faults[f"connection lost: {error!r}"] += 1

    async def _send_one(self, ask: Ask, photo: Photo) -> None:
        started_s = time.perf_counter()
        try:
            answer = await ask(photo.request)
        except WrongAnswerError as error:
            self._faults[str(error)] += 1
            return
        self._latencies_s.append(time.perf_counter() - started_s)
        self._batch_sizes.append(answer.batch_size)
        if answer.top1 != photo.top1:
            self._faults[f"class {answer.top1} for a photo that was first found to be {photo.top1}"] += 1
