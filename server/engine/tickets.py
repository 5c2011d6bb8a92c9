"""The life of requests between admission and answer: a state machine without clock, threads, futures or I/O.

An admitted crop has a ticket, which holds a slot. Events come in as calls with the time and numbers; each call returns
actions for `remote` to carry out: messages to the engine, and tickets that have an answer or have ended.

    admit ─▶ DECODING ─▶ SUBMITTED ─▶ ended; or, where it is kept, ANSWERED ─▶ ended, or asked again as once decoded
                 │        ▲     │
                 ▼        │     ▼ the engine died
              WAITING ────┘  SUBMITTED to another, WAITING, or ended: too many crashes, or no client waits for it
"""

import itertools
import math
from collections.abc import Iterable, Sequence, Set
from enum import Enum, auto
from typing import NamedTuple

from server.engine.admission import Admission
from server.engine.classes import Extras
from server.engine.decoding import Decoded
from server.engine.dispatch import Engines
from server.engine.messages import Answer, Cancel, Dropped, Failure, Reply, Submit
from server.engine.scheduler import Priority
from server.errors import Code, ServiceError

MAX_CRASHES = 2
"""Give up on a job after this many of its batches crashed the engine."""


class State(Enum):
    """Who uses a ticket's slot."""

    DECODING = auto()
    """a decoder, now or soon"""
    WAITING = auto()
    """nobody: the crop is decoded, but no engine that is up has the model"""
    SUBMITTED = auto()
    """its engine, now or soon"""
    ANSWERED = auto()
    """nobody: the pixels are kept, so that another model can be asked"""


class Ticket:
    """One admitted crop, until its slot is free again; the client may have its answer earlier."""

    __slots__ = (
        "admitted_s",
        "answered_s",
        "arrived_s",
        "crashes",
        "deadline_s",
        "decode_s",
        "decode_wait_s",
        "engine",
        "given_up",
        "id",
        "include",
        "kept",
        "model",
        "permits",
        "photo_size",
        "priority",
        "slot",
        "state",
        "top_k",
        "work_s",
    )

    def __init__(
        self,
        ticket_id: int,
        slot: int,
        model: str,
        top_k: int | None,
        deadline_s: float,
        priority: Priority,
        permits: int,
        admitted_s: float,
        include: Extras,
    ) -> None:
        self.id = ticket_id
        self.slot = slot
        self.model = model
        self.top_k = top_k
        self.deadline_s = deadline_s
        self.priority = priority
        self.permits = permits  # in use when it was admitted, including its own
        self.admitted_s = admitted_s
        self.kept = False  # whether the pixels stay after an answer, until it is given up
        self.state = State.DECODING
        self.engine = 0  # the number of the engine it was submitted to
        self.work_s = 0.0  # that it adds at that engine
        self.given_up = False  # no client waits for its answer any more
        self.crashes = 0
        self.decode_wait_s = 0.0
        self.decode_s = 0.0
        self.arrived_s = 0.0
        self.answered_s = 0.0
        self.include = include
        self.photo_size = (0, 0)

    def wanted(self, now_s: float) -> bool:
        """Whether a client still waits for the answer."""
        return not self.given_up and now_s < self.deadline_s


class Ended(NamedTuple):
    """The end of a ticket: neither a decoder nor an engine touches its slot any more."""

    ticket: Ticket
    outcome: Answer | BaseException | None
    """None: no client waits for one"""


class Answered(NamedTuple):
    """An answer to a ticket whose pixels are kept."""

    ticket: Ticket
    outcome: Answer


Action = Submit | Cancel | Answered | Ended


class Tickets:
    """All tickets of one HTTP worker. The owner carries out every action that a call returns, in order."""

    def __init__(self, slots: Iterable[int], engines: Engines, most_crashes: int = MAX_CRASHES) -> None:
        """Give up on a job after `most_crashes` of its batches crashed the engine; its last try runs alone."""
        self._most_crashes, self._runs_alone = most_crashes, most_crashes - 1
        self._free = list(slots)
        self._engines = engines
        self._ids = itertools.count()
        self._tickets: dict[int, Ticket] = {}
        self._admission = Admission(len(self._free))
        self._connected_s = math.inf  # since when an engine has been connected

    def __len__(self) -> int:
        return len(self._tickets)

    def engine_of(self, ticket_id: int) -> int:
        """The number of the engine that a ticket was submitted to."""
        return self._tickets[ticket_id].engine

    def slots_at(self, engine: int) -> list[int]:
        """The slots of tickets submitted to this engine."""
        return [ticket.slot for ticket in self._in(State.SUBMITTED) if ticket.engine == engine]

    def check(self, permits: int, within_s: float) -> None:
        """Refuse a request that could not be admitted now.

        Raises:
            ServiceError: ENGINE_UNAVAILABLE, or as `Admission.check`.
        """
        if not self._engines.expected:
            raise _away()
        self._admission.check(permits, len(self._tickets), within_s)

    def admit(
        self,
        crops: int,
        model: str,
        top_k: int | None,
        deadline_s: float,
        priority: Priority,
        now_s: float,
        include: Extras = Extras.NONE,
    ) -> list[Ticket]:
        """Issue a ticket for each crop of one image, or for none. Tickets marked `kept` can be asked again.

        Raises:
            ServiceError: as `check`.
        """
        self.check(crops, deadline_s - now_s)
        if not self._engines.expects(model):
            raise _away()
        return [self._admit(model, top_k, deadline_s, priority, now_s, include) for _ in range(crops)]

    def decoded(self, tickets: Sequence[Ticket], result: Decoded | BaseException | None, now_s: float) -> list[Action]:
        """A decoder has released the slots. An exception: it failed; None: it never began."""
        if not isinstance(result, Decoded):
            return [self._end(ticket, result) for ticket in tickets]
        actions: list[Action] = []
        for ticket in tickets:
            ticket.arrived_s = result.ended_s
            ticket.decode_wait_s = result.started_s - ticket.admitted_s
            ticket.decode_s = result.ended_s - result.started_s
            ticket.photo_size = result.size
            actions += self._hand_over(ticket, now_s)
        return actions

    def ask_again(self, tickets: Sequence[Ticket], model: str, top_k: int | None, now_s: float) -> list[Action]:
        """Ask another model about the same pixels, without decoding again; all `tickets` are answered."""
        actions: list[Action] = []
        for ticket in tickets:
            ticket.model, ticket.top_k, ticket.arrived_s = model, top_k, now_s
            ticket.decode_wait_s = ticket.decode_s = 0.0
            actions += self._hand_over(ticket, now_s)
        return actions

    def give_up(self, ticket: Ticket) -> list[Action]:
        """Note that the client has its answer or has gone; the slot becomes free once its user releases it."""
        if ticket.id not in self._tickets:
            return []
        ticket.given_up = True
        match ticket.state:
            case State.DECODING:
                return []
            case State.WAITING:
                return [self._end(ticket, None)]
            case State.SUBMITTED:
                return [Cancel(ticket.id)]
            case State.ANSWERED:
                self._learn(ticket, ticket.answered_s)
                return [self._end(ticket, None)]

    def engine_up(self, engine: int, models: Set[str], now_s: float) -> list[Action]:
        """This engine is up, with these models: submit the tickets that wait for one of them."""
        if not self._engines.any_up:
            self._connected_s = now_s
        self._engines.up(engine, models)
        return self._hand_over_all(now_s)

    def engine_down(self, engine: int, ran: Set[int], *, recovering: bool, now_s: float) -> list[Action]:
        """Resubmit a dead engine's tickets to the others: the slots still hold the pixels. `ran`: slots it was running.

        A ticket whose model no engine that is up has waits while a recovering engine may have it; else it fails.
        `recovering`: the dead one is to come back.
        """
        self._engines.down(engine, recovering=recovering)
        if not self._engines.any_up:
            self._connected_s = math.inf
        lost = [ticket for ticket in self._in(State.SUBMITTED) if ticket.engine == engine]
        for ticket in lost:
            ticket.state = State.WAITING
            ticket.crashes += ticket.slot in ran
        ended: list[Action] = []
        for ticket in lost:
            if ticket.crashes >= self._most_crashes:
                detail = f"the inference engine crashed {ticket.crashes} times while it ran this image"
                ended.append(self._end(ticket, ServiceError(Code.ENGINE_CRASHED, detail)))
            elif not ticket.wanted(now_s):
                ended.append(self._end(ticket, None))
        return ended + self._hand_over_all(now_s)

    def replied(self, reply: Reply, now_s: float) -> Answered | Ended:
        """An engine has replied, and with that released the slot."""
        ticket = self._tickets[reply.id]
        self._engines.end(ticket.engine, ticket.work_s)
        if isinstance(reply, Dropped):
            return self._end(ticket, None)
        if isinstance(reply, Answer):
            self._engines.learn(ticket.engine, ticket.model, reply.batch_size, reply.inference_s)
        if ticket.kept and isinstance(reply, Answer) and not ticket.given_up:
            ticket.state, ticket.answered_s = State.ANSWERED, now_s
            return Answered(ticket, reply)
        self._learn(ticket, now_s)
        return self._end(ticket, ServiceError(reply.code, reply.detail) if isinstance(reply, Failure) else reply)

    def too_late(self, tickets: Sequence[Ticket]) -> ServiceError:
        """Why an image was not answered before its deadline."""
        if any(ticket.state is State.WAITING for ticket in tickets):
            return ServiceError(Code.ENGINE_UNAVAILABLE, "the inference engine did not come back in time")
        return ServiceError(Code.DEADLINE_EXCEEDED, "the answer was not ready within the time limit")

    def _admit(
        self, model: str, top_k: int | None, deadline_s: float, priority: Priority, now_s: float, include: Extras
    ) -> Ticket:
        permits = len(self._tickets) + 1
        ticket = Ticket(next(self._ids), self._free.pop(), model, top_k, deadline_s, priority, permits, now_s, include)
        self._tickets[ticket.id] = ticket
        return ticket

    def _learn(self, ticket: Ticket, now_s: float) -> None:
        if ticket.admitted_s > self._connected_s:  # otherwise it waited for an engine to come up
            self._admission.observe(ticket.permits, now_s - ticket.admitted_s)

    def _hand_over_all(self, now_s: float) -> list[Action]:
        """Submit the waiting tickets whose models are available by now."""
        return [action for ticket in self._in(State.WAITING) for action in self._hand_over(ticket, now_s)]

    def _hand_over(self, ticket: Ticket, now_s: float) -> list[Action]:
        """Submit a decoded ticket to the engine expected to answer first."""
        if not ticket.wanted(now_s):
            return [self._end(ticket, None)]
        engine = self._engines.choose(ticket.model)
        if engine is not None:
            return [self._submit(ticket, engine)]
        if self._engines.expects(ticket.model):
            ticket.state = State.WAITING
            return []
        return [self._end(ticket, _away())]

    def _in(self, state: State) -> list[Ticket]:
        return [ticket for ticket in self._tickets.values() if ticket.state is state]

    def _submit(self, ticket: Ticket, engine: int) -> Submit:
        ticket.state = State.SUBMITTED
        ticket.engine = engine
        ticket.work_s = self._engines.begin(engine, ticket.model)
        return Submit(
            id=ticket.id,
            slot=ticket.slot,
            model=ticket.model,
            top_k=ticket.top_k,
            arrived_s=ticket.arrived_s,
            deadline_s=ticket.deadline_s,
            quarantined=ticket.crashes >= self._runs_alone,
            priority=ticket.priority,
            include=ticket.include,
        )

    def _end(self, ticket: Ticket, outcome: Answer | BaseException | None) -> Ended:
        del self._tickets[ticket.id]
        self._free.append(ticket.slot)
        return Ended(ticket, outcome)


def _away() -> ServiceError:
    return ServiceError(Code.ENGINE_UNAVAILABLE, "the inference engine is down; try again soon")
