"""An HTTP worker's connection to the engines: requests go through sockets, pixels through shared memory.

`tickets` decides what happens to a request; this module has the futures, the decoders' results and the sockets.
"""

import asyncio
import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import Future
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from models.manifest import CropCount
from server.engine import life
from server.engine.channel import Channel
from server.engine.classes import Classes, Extras, Follow, Question, shaped
from server.engine.decoding import Decoded, Decoders, Image
from server.engine.dispatch import Engines
from server.engine.messages import Answer, Cancel, Submit, decode_replies, encode
from server.engine.scheduler import Priority
from server.engine.tickets import MAX_CRASHES, Action, Answered, Ended, Ticket, Tickets
from server.repository import Model
from server.slots import Slots
from server.time_limit import TimeLimit


class RemoteEngine:
    """A `Classifier`: decodes images into the slots that it owns, and has the engine processes classify them."""

    def __init__(
        self,
        slots: Slots,
        owned: range,
        decoders: Decoders,
        count: Callable[[int], None],
        worker: int = 0,
        *,
        work_s: NDArray[np.float64] | None = None,
        most_crashes: int = MAX_CRASHES,
    ) -> None:
        """Use the slots `owned`, as this HTTP worker; `count` is called with each new number of slots in use."""
        self._slots = slots
        self._decoders = decoders
        self._count = count
        self._loop = asyncio.get_running_loop()
        # Background work passes a table of its own, so that it does not affect how requests are dispatched.
        self._engines = Engines(slots.work_s if work_s is None else work_s, worker)
        self._tickets = Tickets(owned, self._engines, most_crashes)
        self._futures: dict[int, asyncio.Future[Classes]] = {}  # by ticket
        self._channels: dict[int, Channel] = {}  # by engine
        self._lives: dict[int, list[int]] = {}  # by engine: descriptors that become readable when it is dying

    @property
    def connected(self) -> bool:
        """See `Classifier`."""
        return self._engines.any_up

    @property
    def away(self) -> Sequence[int]:
        """See `Classifier`."""
        return self._engines.away

    def has(self, model: str) -> bool:
        """See `Classifier`."""
        return self._engines.has(model)

    def check_admission(self, permits: int = 1, within_s: float = math.inf) -> None:
        """See `Classifier`."""
        self._tickets.check(permits, within_s)

    async def classify(
        self,
        image: Image,
        model: Model,
        top_k: int | None,
        deadline_s: float,
        *,
        crops: CropCount = 1,
        priority: Priority = Priority.NORMAL,
        follow: Follow | None = None,
        include: Extras = Extras.NONE,
    ) -> list[Classes]:
        """See `Classifier`."""
        now_s = time.monotonic()
        tickets = self._tickets.admit(crops, model.id, top_k, deadline_s, priority, now_s, include)
        futures = self._expect(tickets, kept=follow is not None)
        self._count(len(self._tickets))
        shape = model.manifest.input_shape
        pixels = [self._slots.pixels(ticket.slot, shape) for ticket in tickets]
        first = tickets[0]
        try:
            decoding = self._decoders.submit(
                image, model.manifest.preprocessing, pixels, lambda: first.wanted(time.monotonic())
            )
        except RuntimeError:  # no thread could be started
            self._do(self._tickets.decoded(tickets, None, now_s))
            raise
        decoding.add_done_callback(lambda done: _call_in(self._loop, self._decoded, tickets, done))
        try:
            with TimeLimit(deadline_s - now_s):
                answers = [await future for future in futures]
                while follow and (question := follow(answers)):
                    answers = await self._ask_again(tickets, question)
            return [shaped(each, model.manifest) for each in answers] if include else answers
        except TimeoutError:
            raise self._tickets.too_late(tickets) from None
        finally:
            decoding.cancel()  # has an effect only before a decoder begins
            for ticket in tickets:
                self._do(self._tickets.give_up(ticket))

    def _expect(self, tickets: Sequence[Ticket], *, kept: bool) -> list[asyncio.Future[Classes]]:
        """Futures of the next answer to each ticket; `kept`: the pixels stay in the slot after it."""
        futures = [self._loop.create_future() for _ in tickets]
        for ticket, future in zip(tickets, futures, strict=True):
            self._slots.running[ticket.slot] = False
            ticket.kept = kept
            self._futures[ticket.id] = future
        return futures

    async def _ask_again(self, tickets: Sequence[Ticket], question: Question) -> list[Classes]:
        futures = self._expect(tickets, kept=True)
        self._do(self._tickets.ask_again(tickets, question.model.id, question.top_k, time.monotonic()))
        return [await future for future in futures]

    def hold(self, models: Sequence[Set[str]], usable: Set[str] | None = None) -> None:
        """Update the ids of the models that each engine has; None: all of them are `usable`."""
        self._engines.hold(models, usable)

    def engine_up(self, engine: int, address: str, models: Set[str]) -> bool:
        """Connect to a new engine with these models and submit what waits for them; False: it is unreachable."""
        if engine in self._channels:
            self.engine_down(engine, recovering=True)
        if (connected := _connected(address)) is None:
            return False
        self._channels[engine] = Channel(connected)
        self._loop.add_reader(connected, self._readable, engine)
        self._lives[engine] = life.watch(connected)
        for descriptor in self._lives[engine]:
            self._loop.add_reader(descriptor, lambda: self.engine_down(engine, recovering=True))
        self._do(self._tickets.engine_up(engine, models, time.monotonic()))
        return True

    def engine_down(self, engine: int, *, recovering: bool) -> None:
        """Resubmit a dead engine's work to the others, or let it wait for a successor if one is `recovering`."""
        self._receive(engine)  # answers it sent before it died
        self._disconnect(engine)
        slots = self._tickets.slots_at(engine)
        ran = {slot for slot in slots if self._slots.running[slot]}
        self._slots.running[slots] = False
        self._do(self._tickets.engine_down(engine, ran, recovering=recovering, now_s=time.monotonic()))

    def close(self) -> None:
        """Disconnect from the engines."""
        for engine in list(self._channels):
            self._disconnect(engine)

    def _decoded(self, tickets: Sequence[Ticket], decoding: "Future[Decoded | None]") -> None:
        result = None if decoding.cancelled() else decoding.exception() or decoding.result()
        self._do(self._tickets.decoded(tickets, result, time.monotonic()))

    def _readable(self, engine: int) -> None:
        """Read from an engine. EOF means that its process has ended, whether or not the supervisor has said so."""
        if not self._receive(engine):
            self.engine_down(engine, recovering=True)

    def _receive(self, engine: int) -> bool:
        """Take an engine's replies; False: it is gone."""
        if engine not in self._channels:
            return False
        try:
            messages = self._channels[engine].receive()
        except EOFError:
            return False
        now_s = time.monotonic()
        for replies in map(decode_replies, messages):
            self._do(self._tickets.replied(reply, now_s) for reply in replies)
        return True

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Submit() | Cancel():
                    self._send(action)
                case Ended():
                    self._count(len(self._tickets))
                    self._answer(action)
                case Answered():
                    self._answer(action)
                case _:
                    assert_never(action)

    def _send(self, message: Submit | Cancel) -> None:
        engine = self._tickets.engine_of(message.id)
        channel = self._channels.get(engine)  # None: this process is ending
        if channel is not None and not channel.send(encode(message)):
            self._loop.add_writer(channel.fileno(), self._flush, engine)

    def _flush(self, engine: int) -> None:
        channel = self._channels[engine]
        if channel.flush():
            self._loop.remove_writer(channel.fileno())

    def _answer(self, action: Answered | Ended) -> None:
        ticket, outcome = action
        future = self._futures.pop(ticket.id, None)
        if future is None or future.done():
            return
        if isinstance(outcome, Answer):
            future.set_result(_classes(ticket, outcome))
        elif outcome is not None:
            future.set_exception(outcome)
            future.exception()  # marks it as retrieved: a cancelled caller never asks, and asyncio would log it

    def _disconnect(self, engine: int) -> None:
        for descriptor in self._lives.pop(engine, ()):
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        if channel := self._channels.pop(engine, None):
            self._loop.remove_reader(channel.fileno())
            self._loop.remove_writer(channel.fileno())
            channel.close()


def _connected(address: str) -> socket.socket | None:
    connected = None
    try:
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(address)
    except OSError:  # the engine has died, or this process is out of descriptors
        if connected:
            connected.close()
        return None
    return connected


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
        loop.call_soon_threadsafe(function, *args)


def _classes(ticket: Ticket, answer: Answer) -> Classes:
    return Classes(
        np.frombuffer(answer.probabilities, np.float32),
        np.frombuffer(answer.indices, np.int32),
        np.frombuffer(answer.logits, np.float32),
        answer.queue_s,
        answer.inference_s,
        answer.batch_size,
        ticket.decode_wait_s,
        ticket.decode_s,
        features=np.frombuffer(answer.features, np.float32),
        activation_maps=np.frombuffer(answer.activation_maps, np.float32),
        photo_size=ticket.photo_size,
    )
