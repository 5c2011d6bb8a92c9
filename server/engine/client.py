"""The HTTP worker's side of the engine: admission, decoding, submission, and what happens when the engine dies.

A slot is the permit of one request, from upload to answer. `EngineClient` belongs to one event loop; only decoding
happens in other threads.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum, auto
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.manifest import CropCount, Preprocessing
from server.engine.admission import Admission
from server.engine.channel import Channel
from server.engine.messages import Answer, Cancel, Dropped, Submit, decode_replies, encode
from server.engine.scheduler import Priority
from server.engine.slots import Slots
from server.errors import Code, ServiceError
from server.repository import Model

MAX_CRASHES = 2
"""A job that was in this many batches that crashed the engine is not tried again."""

Image = bytes | NDArray[np.uint8]
"""Compressed, or pixels that need no decoding: uint8[H, W, 3], RGB. Only the decoder looks at it."""
Decode = Callable[[Image, Preprocessing, Sequence[NDArray[np.uint8]]], None]

log = logging.getLogger(__name__)


class Classes(NamedTuple):
    """The answer to one crop."""

    probabilities: NDArray[np.float32]
    """float32[k], best first; empty where the logits were asked for"""
    indices: NDArray[np.int32]
    """int32[k]"""
    logits: NDArray[np.float32]
    """float32[num_classes]; empty where they were not asked for"""
    decode_wait_s: float
    decode_s: float
    queue_s: float
    inference_s: float
    batch_size: int


def average(answers: Sequence[Classes], top_k: int) -> Classes:
    """The `top_k` classes by the mean probability over answers that hold logits; of times and sizes the largest."""
    logits = np.stack([answer.logits for answer in answers]).astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = (powers / powers.sum(1, keepdims=True)).mean(0)
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return Classes(
        probabilities[best].astype(np.float32),
        best.astype(np.int32),
        np.empty(0, np.float32),
        max(answer.decode_wait_s for answer in answers),
        max(answer.decode_s for answer in answers),
        max(answer.queue_s for answer in answers),
        max(answer.inference_s for answer in answers),
        max(answer.batch_size for answer in answers),
    )


class _State(Enum):
    DECODING = auto()
    WAITING = auto()  # decoded, for an engine that is away
    SUBMITTED = auto()


class _Ticket:
    """One admitted crop, until its slot is free again; that may be after its client has its answer."""

    __slots__ = (
        "admitted_s",
        "arrived_s",
        "crashes",
        "deadline_s",
        "decode_s",
        "decode_wait_s",
        "future",
        "id",
        "model",
        "places",
        "priority",
        "slot",
        "state",
        "top_k",
    )

    def __init__(
        self,
        ticket_id: int,
        slot: int,
        model: Model,
        top_k: int | None,
        deadline_s: float,
        priority: Priority,
        future: asyncio.Future[Classes],
        places: int,
    ) -> None:
        self.id = ticket_id
        self.slot = slot
        self.model = model
        self.top_k = top_k
        self.deadline_s = deadline_s
        self.priority = priority
        self.future = future
        self.places = places
        self.admitted_s = time.monotonic()
        self.state = _State.DECODING
        self.crashes = 0
        self.decode_wait_s = 0.0
        self.decode_s = 0.0
        self.arrived_s = 0.0

    @property
    def wanted(self) -> bool:
        """Somebody still waits for the answer."""
        return not self.future.done() and time.monotonic() < self.deadline_s


class EngineClient:
    """Admits images while slots are free, decodes them into their slots and has the engine classify them."""

    def __init__(
        self, slots: Slots, owned: range, decode: Decode, decode_threads: int, count: Callable[[int], None]
    ) -> None:
        """Use the slots `owned`; `count` is told of each change of the number in use."""
        self._slots = slots
        self._free = list(owned)
        self._decode = decode
        self._threads = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count()
        self._count = count
        self._tickets: dict[int, _Ticket] = {}
        self._admission = Admission(len(owned))
        self._engine_up_s = 0.0
        self._decoding_since_s: dict[int, float] = {}
        self._channel: Channel | None = None
        self._available = True  # requests are admitted: the engine is there, or will be soon

    @property
    def connected(self) -> bool:
        """The engine is there."""
        return self._channel is not None

    def longest_decode_s(self) -> float:
        """How long the slowest decoder has been at its image; 0 where none is at work."""
        return max((time.monotonic() - since_s for since_s in self._decoding_since_s.copy().values()), default=0.0)

    def check_admission(self, places: int = 1, within_s: float = math.inf) -> None:
        """Refuse at once, before anything is spent on a request, where it could not be admitted now.

        Raises:
            ServiceError: ENGINE_UNAVAILABLE, QUEUE_FULL, OVERLOADED where its answer would take longer than `within_s`,
                or INVALID_PARAMETER where it could never be admitted.
        """
        if not self._available:
            raise self._away()
        self._admission.check(places, len(self._tickets), within_s)

    async def classify(
        self,
        data: Image,
        model: Model,
        top_k: int | None,
        deadline_s: float,
        *,
        crops: CropCount = 1,
        priority: Priority = Priority.NORMAL,
    ) -> list[Classes]:
        """Classify each crop of one image before `deadline_s` of the monotonic clock.

        `top_k` None asks for the logits of all classes, which averages need.

        Cancelling the call gives the work up: what has not started never will.

        Raises:
            ServiceError: not admitted, not an image, too late, or the engine's own failure.
        """
        within_s = deadline_s - time.monotonic()
        self.check_admission(crops, within_s)
        tickets = [self._admit(model, top_k, deadline_s, priority) for _ in range(crops)]
        try:
            decoding = self._threads.submit(self._decode_into_slots, data, tickets)
        except RuntimeError:  # the system gives no more threads; one that is there may still find this, unwanted
            for ticket in tickets:
                ticket.future.cancel()
                self._end(ticket)
            raise
        decoding.add_done_callback(lambda done: self._call_in_loop(self._decoded, tickets, done))
        try:
            async with asyncio.timeout(within_s):
                return [await ticket.future for ticket in tickets]
        except TimeoutError:
            raise self._too_late(tickets) from None
        finally:
            for ticket in tickets:
                self._abandon(ticket, decoding)

    @property
    def models(self) -> set[str]:
        """Ids of the models that some request under way needs."""
        return {ticket.model.id for ticket in self._tickets.values()}

    def engine_up(self, address: str) -> None:
        """Connect to a new engine and hand it everything that waits; afterwards `connected` tells whether that was."""
        self._disconnect()
        connected = None
        try:
            connected = socket.socket(socket.AF_UNIX)
            connected.connect(address)
        except OSError:  # it has died by now, too, or this process has no descriptor left
            if connected:
                connected.close()
            return
        self._channel = Channel(connected)
        self._engine_up_s = time.monotonic()
        self._available = True
        self._loop.add_reader(connected, self._receive)
        for ticket in list(self._tickets.values()):
            if ticket.state is _State.WAITING:
                self._submit(ticket)

    def engine_down(self, *, recovering: bool) -> None:
        """Take back what the dead engine had: its pixels are still in their slots."""
        self._receive()  # what it had answered before it died
        self._disconnect()
        self._available = recovering
        for ticket in [ticket for ticket in self._tickets.values() if ticket.state is _State.SUBMITTED]:
            ticket.state = _State.WAITING
            ticket.crashes += bool(self._slots.running[ticket.slot])
            self._slots.running[ticket.slot] = False
            if ticket.crashes >= MAX_CRASHES:
                detail = f"the inference engine crashed {MAX_CRASHES} times while it ran this image"
                self._end(ticket, ServiceError(Code.ENGINE_CRASHED, detail))
            elif not ticket.wanted:
                self._end(ticket)
        if not recovering:
            for ticket in [ticket for ticket in self._tickets.values() if ticket.state is _State.WAITING]:
                self._end(ticket, self._away())

    def close(self) -> None:
        """Let go of the engine and the decoding threads."""
        self._disconnect()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _admit(self, model: Model, top_k: int | None, deadline_s: float, priority: Priority) -> _Ticket:
        slot = self._free.pop()
        self._slots.running[slot] = False
        future: asyncio.Future[Classes] = self._loop.create_future()
        places = len(self._tickets) + 1
        ticket = _Ticket(next(self._ids), slot, model, top_k, deadline_s, priority, future, places)
        self._tickets[ticket.id] = ticket
        self._count(len(self._tickets))
        return ticket

    def _decode_into_slots(self, data: Image, tickets: Sequence[_Ticket]) -> None:
        """Decode into the slots of one image's crops."""
        first = tickets[0]
        if not first.wanted:
            return
        started_s = time.monotonic()
        self._decoding_since_s[first.id] = started_s
        try:
            self._decode_crops(data, tickets, started_s)
        finally:
            del self._decoding_since_s[first.id]

    def _decode_crops(self, data: Image, tickets: Sequence[_Ticket], started_s: float) -> None:
        first = tickets[0]
        pixels = [self._slots.pixels(ticket.slot, first.model.manifest.input_shape) for ticket in tickets]
        self._decode(data, first.model.manifest.preprocessing, pixels)
        arrived_s = time.monotonic()
        for ticket in tickets:
            ticket.arrived_s = arrived_s
            ticket.decode_wait_s = started_s - first.admitted_s
            ticket.decode_s = arrived_s - started_s

    def _decoded(self, tickets: Sequence[_Ticket], decoding: Future[None]) -> None:
        error = None if decoding.cancelled() else decoding.exception()
        for ticket in tickets:
            if error or not ticket.wanted:
                self._end(ticket, error)
            elif self._channel is not None:
                self._submit(ticket)
            elif self._available:
                ticket.state = _State.WAITING
            else:
                self._end(ticket, self._away())

    def _submit(self, ticket: _Ticket) -> None:
        ticket.state = _State.SUBMITTED
        self._send(
            Submit(
                id=ticket.id,
                slot=ticket.slot,
                model=ticket.model.id,
                top_k=ticket.top_k,
                arrived_s=ticket.arrived_s,
                deadline_s=ticket.deadline_s,
                alone=ticket.crashes > 0,
                priority=ticket.priority,
            )
        )

    def _send(self, message: Submit | Cancel) -> None:
        if self._channel is not None and not self._channel.send(encode(message)):
            self._loop.add_writer(self._channel.fileno(), self._flush)

    def _flush(self) -> None:
        if self._channel is not None and self._channel.flush():
            self._loop.remove_writer(self._channel.fileno())

    def _receive(self) -> None:
        if self._channel is None:
            return
        try:
            messages = self._channel.receive()
        except EOFError:
            self._loop.remove_reader(self._channel.fileno())  # `engine_down` will be called
            return
        for replies in map(decode_replies, messages):
            for reply in replies:
                ticket = self._tickets[reply.id]
                if isinstance(reply, Dropped):
                    self._end(ticket)
                    continue
                if ticket.admitted_s > self._engine_up_s:  # else what it waited for was an engine
                    self._admission.observe(ticket.places, time.monotonic() - ticket.admitted_s)
                if isinstance(reply, Answer):
                    self._answer(ticket, reply)
                else:
                    self._end(ticket, ServiceError(reply.code, reply.detail))

    def _answer(self, ticket: _Ticket, answer: Answer) -> None:
        if not ticket.future.done():
            ticket.future.set_result(
                Classes(
                    np.frombuffer(answer.probabilities, np.float32),
                    np.frombuffer(answer.indices, np.int32),
                    np.frombuffer(answer.logits, np.float32),
                    ticket.decode_wait_s,
                    ticket.decode_s,
                    answer.queue_s,
                    answer.inference_s,
                    answer.batch_size,
                )
            )
        self._end(ticket)

    def _end(self, ticket: _Ticket, error: BaseException | None = None) -> None:
        """Give the slot back: neither a decoder nor the engine touches it any more."""
        del self._tickets[ticket.id]
        self._count(len(self._tickets))
        self._free.append(ticket.slot)
        if error is not None and not ticket.future.done():
            ticket.future.set_exception(error)
            ticket.future.exception()  # a caller that is just being cancelled never asks; nothing is to be logged then

    def _abandon(self, ticket: _Ticket, decoding: Future[None]) -> None:
        """The caller has its answer, or has gone; the slot is free once whoever uses it lets go of it."""
        if ticket.id not in self._tickets:
            return
        ticket.future.cancel()
        if ticket.state is _State.DECODING:
            decoding.cancel()
        elif ticket.state is _State.WAITING:
            self._end(ticket)
        else:
            self._send(Cancel(ticket.id))

    def _away(self) -> ServiceError:
        return ServiceError(Code.ENGINE_UNAVAILABLE, "the inference engine is down; try again soon")

    def _too_late(self, tickets: Sequence[_Ticket]) -> ServiceError:
        if any(ticket.state is _State.WAITING for ticket in tickets):
            return ServiceError(Code.ENGINE_UNAVAILABLE, "the inference engine was not there in time")
        return ServiceError(Code.DEADLINE_EXCEEDED, "the answer was not ready within the time limit")

    def _call_in_loop(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(function, *args)

    def _disconnect(self) -> None:
        if self._channel is not None:
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
            self._channel.close()
            self._channel = None
