"""Which models are loaded where not all of them are to be: decided by numbers, without clock or I/O.

Models have an order: those that are pinned; those that somebody waits for, the longest first; those that were used, the
last first. Down that order, each that has room beside those before it is to be loaded.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple, Self

from server.refusals import Cause, Refusal
from server.repository import Model
from server.settings import Settings

FIRST_LOAD_S = 1.0
"""Taken for the time of a load while none is known."""
SMOOTHING = 0.5
"""Weight of the newest measurement in what is learned of a model (exponential moving average)."""


class Budget(NamedTuple):
    """What the models of each engine may come to; None: any number, or any size."""

    models: int | None
    memory_bytes: int | None

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """None: all models are loaded."""
        if settings.max_loaded is None and settings.memory_budget is None:
            return None
        return cls(settings.max_loaded, settings.memory_budget)


class Measured(NamedTuple):
    """What an engine found when it loaded a model."""

    seconds: float
    model_bytes: int
    """by which the memory of its models grew; 0 where that cannot be told"""
    total_bytes: int
    """that all its models take"""


class Claim(NamedTuple):
    """A model that has, or wants, room in some engines."""

    model: Model
    engines: Sequence[int]
    counts: bool = True
    """It is one of so many; not while another is loaded beside it, or it beside others."""


@dataclass(slots=True)
class _Room:
    """What is taken of an engine."""

    overhead_bytes: int
    count: int = 0
    taken_bytes: int = 0
    alone: bool = True
    """but for what is pinned"""


class Fitting:
    """What was learned of models and is wanted of them, and which fit. Models are named by their ids."""

    def __init__(self, budget: Budget, engines: int = 1) -> None:
        self._budget = budget
        self._turns = itertools.count()
        self._used: dict[str, int] = {}  # when last, in turns
        self._waiting: dict[str, Mapping[str, int]] = {}  # by who waits: since which turn for each
        self._cost_bytes: dict[str, int] = {}  # as measured
        self._size_bytes: dict[str, int] = {}  # of the files of these
        self._beyond_bytes = 0  # that models usually take beyond their files
        self._load_s: dict[str, float] = {}
        self._newest_load_s = FIRST_LOAD_S
        self._overhead_bytes = [0] * engines  # what each engine's models take beyond what is known of each

    def demanded(self, who: str, waiting: Set[str], used: Iterable[str] = ()) -> None:
        """`who` waits for these, no others, and has used those, in this order, since it last said so."""
        before = self._waiting.get(who, {})
        self._waiting[who] = {one: before[one] if one in before else next(self._turns) for one in sorted(waiting)}
        for one in (*used, *waiting):
            self.touch(one)

    def gone(self, who: str) -> None:
        """It waits for nothing any more."""
        self._waiting.pop(who, None)

    def touch(self, model_id: str) -> None:
        """It was used just now."""
        self._used[model_id] = next(self._turns)

    def forget_all_but(self, model_ids: Set[str]) -> None:
        """The others are gone from the repository."""
        for known in (self._used, self._cost_bytes, self._size_bytes, self._load_s):
            for gone in known.keys() - model_ids:
                del known[gone]

    def learn(self, engine: int, model: Model, measured: Measured, loaded: Iterable[Model]) -> None:
        """An engine has loaded a model, and has all these by now."""
        self._newest_load_s = measured.seconds
        self._load_s[model.id] = _mean(self._load_s.get(model.id), measured.seconds)
        if measured.model_bytes:
            # What the runtime had kept of others that are gone is used again: a model is no less than its file.
            cost_bytes = max(measured.model_bytes, model.manifest.file.size_bytes)
            self._cost_bytes[model.id] = int(_mean(self._cost_bytes.get(model.id), cost_bytes))
            self._size_bytes[model.id] = model.manifest.file.size_bytes
            beyond = [cost - self._size_bytes[one] for one, cost in self._cost_bytes.items()]
            self._beyond_bytes = int(median(beyond))
        known_bytes = sum(self.cost_bytes(one) for one in loaded)
        self._overhead_bytes[engine] = max(0, measured.total_bytes - known_bytes)

    def restarted(self, engine: int) -> None:
        """Another process is in the engine's place."""
        self._overhead_bytes[engine] = 0

    def load_s(self, model_id: str) -> float:
        """How long it takes to load a model: as it did, else as the newest did."""
        return self._load_s.get(model_id, self._newest_load_s)

    def cost_bytes(self, model: Model) -> int:
        """What it takes, as it was measured; else its file, and what models usually take beyond theirs."""
        if model.id in self._cost_bytes:
            return self._cost_bytes[model.id]
        return model.manifest.file.size_bytes + self._beyond_bytes

    def is_awaited(self, model_id: str) -> bool:
        """Somebody waits for it."""
        return any(model_id in waiting for waiting in self._waiting.values())

    def ordered(self, models: Iterable[Model], kept: Set[str]) -> list[Model]:
        """Those that there is any reason to have, in their order; those `kept` are as if they were pinned."""
        since: dict[str, int] = {}
        for waiting in self._waiting.values():
            for model_id, turn in waiting.items():
                since[model_id] = min(turn, since.get(model_id, turn))
        order: list[tuple[int, int, Model]] = []
        for model in models:
            if model.settings.pinned or model.id in kept:
                order.append((0, 0, model))
            elif model.id in since:
                order.append((1, since[model.id], model))
            elif model.id in self._used:
                order.append((2, -self._used[model.id], model))
        return [model for *_, model in sorted(order, key=lambda each: (each[0], each[1], each[2].key, each[2].id))]

    def choose(self, claims: Iterable[Claim]) -> set[str]:
        """Ids of those that have room, wherever they claim it, beside those before them."""
        rooms = [_Room(overhead_bytes) for overhead_bytes in self._overhead_bytes]
        chosen: set[str] = set()
        for model, engines, counts in claims:
            if counts and self._budget.models and all(map(self._is_full, rooms)):
                break  # nothing that counts has room
            if all(self._has_room(rooms[at], model) and not (counts and self._is_full(rooms[at])) for at in engines):
                chosen.add(model.id)
                for at in engines:
                    self._take(rooms[at], model, counts=counts)
        return chosen

    def may_load(self, engine: int, model: Model, loaded: Iterable[Model], *, beside: bool) -> bool:
        """Whether there is room beside all that an engine has; `beside`: for one more than there may be.

        So a load that fails has cost no other model its place.
        """
        room = _Room(self._overhead_bytes[engine])
        for one in loaded:
            self._take(room, one)
        room.count -= beside
        return self._has_room(room, model) and not self._is_full(room)

    def why_not(
        self, models: Sequence[Model], pinned: Sequence[Model], replaced: Sequence[Model] = ()
    ) -> Refusal | None:
        """Why these could never be loaded together on an engine, beside those; None: they could.

        What is `replaced` is there only until they are, so it takes memory, and is none of so many.
        """
        ids = {model.id for model in models}
        others = [model for model in pinned if model.id not in ids]
        beside = f", beside {len(others)} pinned" if others else ""
        if self._budget.models is not None and len(models) + len(others) > self._budget.models:
            needs = "it needs a place" if len(models) == 1 else f"its {len(models)} members need a place each"
            return Refusal(Cause.NOT_NOW, f"{needs}{beside}; max_loaded is {self._budget.models}")
        taken = [*others, *(model for model in replaced if model.id not in ids)]
        needed_bytes = sum(map(self._least_bytes, models))
        taken_bytes = sum(map(self._least_bytes, taken))
        if self._budget.memory_bytes is not None and needed_bytes + taken_bytes > self._budget.memory_bytes:
            beside = " and ".join(["what is pinned"] * bool(others) + ["what it replaces"] * bool(replaced))
            needs = f"it takes {needed_bytes:,} bytes of memory" + (f", {beside} {taken_bytes:,}" if beside else "")
            return Refusal(Cause.NOT_NOW, f"{needs}; memory_budget is {self._budget.memory_bytes:,}")
        return None

    def _least_bytes(self, model: Model) -> int:
        """What it takes in any case."""
        return self._cost_bytes.get(model.id, model.manifest.file.size_bytes)

    def _take(self, room: _Room, model: Model, *, counts: bool = True) -> None:
        room.count += counts
        room.taken_bytes += self.cost_bytes(model)
        room.alone &= model.settings.pinned

    def _is_full(self, room: _Room) -> bool:
        return self._budget.models is not None and room.count >= self._budget.models

    def _has_room(self, room: _Room, model: Model) -> bool:
        """Of one that would be alone only what is certain counts: nobody could make room for a guess."""
        if self._budget.memory_bytes is None:
            return True
        needed_bytes = self._least_bytes(model) if room.alone else self.cost_bytes(model) + room.overhead_bytes
        return room.taken_bytes + needed_bytes <= self._budget.memory_bytes


def _mean(known: float | None, newest: float) -> float:
    return newest if known is None else known + SMOOTHING * (newest - known)
