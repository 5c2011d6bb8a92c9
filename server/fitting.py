"""Decides which models to keep loaded if not all of them fit: pure computation, without clock or I/O.

Models are ranked: first the pinned ones; then those that requests wait for, the longest wait first; then those used
before, the most recent first. In that order, each model is chosen that fits beside those chosen before it.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple, Self

from server.engine.backends import ONNX_BACKENDS
from server.refusals import Cause, Refusal
from server.repository import Model
from server.settings import GPU_PROVIDERS, Settings

FIRST_LOAD_S = 1.0
"""Assumed duration of a load before any was measured."""
SMOOTHING = 0.5
"""Weight of the newest measurement of a model (exponential moving average)."""


class Budget(NamedTuple):
    """Limits on the models of each engine; None: no limit."""

    models: int | None
    memory_bytes: int | None
    instances: int | None = None
    """The server's setting, if CPUs run the models: with more than one, weights lie in memory twice."""

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The budget that the settings give; None: all models are kept loaded."""
        if settings.max_loaded is None and settings.memory_budget is None:
            return None
        on_gpu = not GPU_PROVIDERS.isdisjoint(settings.providers)
        return cls(settings.max_loaded, settings.memory_budget, None if on_gpu else settings.instances)


class Measured(NamedTuple):
    """Time and memory that an engine measured when it loaded a model."""

    seconds: float
    model_bytes: int
    """Growth of the memory that the engine's models take; 0 if unknown."""
    total_bytes: int
    """Memory that all the engine's models take."""


class Claim(NamedTuple):
    """A model that has room in some engines, or is to get it."""

    model: Model
    engines: Sequence[int]
    counts: bool = True
    """Whether it counts towards `max_loaded`: not while it is replaced, or replaces another."""


@dataclass(slots=True)
class _Room:
    """The part of one engine's budget that is taken."""

    overhead_bytes: int
    count: int = 0
    taken_bytes: int = 0
    alone: bool = True
    """Whether only pinned models have taken any."""


class Fitting:
    """Knows the cost of models and the demand for them, and chooses those that fit. Models are named by their ids."""

    def __init__(self, budget: Budget, engines: int = 1) -> None:
        self._budget = budget
        self._turns = itertools.count()
        self._used: dict[str, int] = {}  # turn of the last use, by model
        self._waiting: dict[str, Mapping[str, int]] = {}  # by waiting worker: for each model, the turn it began to wait
        self._cost_bytes: dict[str, int] = {}  # measured memory, by model
        self._weights_bytes: dict[str, int] = {}  # of each measured model
        self._beyond_bytes = 0  # memory that models usually take beyond their weights
        self._load_s: dict[str, float] = {}
        self._newest_load_s = FIRST_LOAD_S
        self._overhead_bytes = [0] * engines  # memory that each engine's models take beyond the sum of their costs

    def demanded(self, who: str, waiting: Set[str], used: Iterable[str] = ()) -> None:
        """Note that `who` now waits for exactly the models `waiting`, and has since used those in `used`, in order."""
        before = self._waiting.get(who, {})
        self._waiting[who] = {one: before[one] if one in before else next(self._turns) for one in sorted(waiting)}
        for one in (*used, *waiting):
            self.touch(one)

    def gone(self, who: str) -> None:
        """Note that `who` has ended, and waits for nothing any more."""
        self._waiting.pop(who, None)

    def touch(self, model_id: str) -> None:
        """Note that a model was used just now."""
        self._used[model_id] = next(self._turns)

    def forget_all_but(self, model_ids: Set[str]) -> None:
        """Forget all other models: they are gone from the repository."""
        for known in (self._used, self._cost_bytes, self._weights_bytes, self._load_s):
            for gone in known.keys() - model_ids:
                del known[gone]

    def learn(self, engine: int, model: Model, measured: Measured, loaded: Iterable[Model]) -> None:
        """Note what an engine measured when it loaded a model; `loaded` are all that it has now."""
        self._newest_load_s = measured.seconds
        self._load_s[model.id] = _mean(self._load_s.get(model.id), measured.seconds)
        if measured.model_bytes:
            # Growth may be too small, as the runtime reuses memory of unloaded models: a model takes at least its file.
            cost_bytes = max(measured.model_bytes, model.manifest.file.size_bytes)
            self._cost_bytes[model.id] = int(_mean(self._cost_bytes.get(model.id), cost_bytes))
            self._weights_bytes[model.id] = self._expected_weights_bytes(model)
            beyond = [cost - self._weights_bytes[one] for one, cost in self._cost_bytes.items()]
            self._beyond_bytes = int(median(beyond))
        known_bytes = sum(self.cost_bytes(one) for one in loaded)
        self._overhead_bytes[engine] = max(0, measured.total_bytes - known_bytes)

    def restarted(self, engine: int) -> None:
        """Note that a new process has replaced the engine."""
        self._overhead_bytes[engine] = 0

    def load_s(self, model_id: str) -> float:
        """How long a model is likely to take to load: as measured, else as long as the newest load of any model."""
        return self._load_s.get(model_id, self._newest_load_s)

    def cost_bytes(self, model: Model) -> int:
        """Memory that a model takes: as measured, else its weights and what models usually take beyond these."""
        if model.id in self._cost_bytes:
            return self._cost_bytes[model.id]
        return max(self._least_bytes(model), self._expected_weights_bytes(model) + self._beyond_bytes)

    def is_awaited(self, model_id: str) -> bool:
        """Whether any request waits for this model."""
        return any(model_id in waiting for waiting in self._waiting.values())

    def ordered(self, models: Iterable[Model], kept: Set[str]) -> list[Model]:
        """The models that are pinned, awaited or were used, ranked; those `kept` rank as if they were pinned."""
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
        """Ids of the models that fit in all their engines, beside those chosen before them."""
        rooms = [_Room(overhead_bytes) for overhead_bytes in self._overhead_bytes]
        chosen: set[str] = set()
        for model, engines, counts in claims:
            if counts and self._budget.models and all(map(self._is_full, rooms)):
                break  # no further model that counts fits
            if all(self._has_room(rooms[at], model) and not (counts and self._is_full(rooms[at])) for at in engines):
                chosen.add(model.id)
                for at in engines:
                    self._take(rooms[at], model, counts=counts)
        return chosen

    def may_load(self, engine: int, model: Model, loaded: Iterable[Model], *, beside: bool) -> bool:
        """Whether a model fits beside all that an engine has; with `beside`, one more than `max_loaded` may be loaded.

        The engine can then load a replacement before it unloads anything: if the load fails, no model has lost its
        place.
        """
        room = _Room(self._overhead_bytes[engine])
        for one in loaded:
            self._take(room, one)
        room.count -= beside
        return self._has_room(room, model) and not self._is_full(room)

    def why_not(
        self, models: Sequence[Model], pinned: Sequence[Model], replaced: Sequence[Model] = ()
    ) -> Refusal | None:
        """Why an engine could never load these models together, beside the pinned ones; None: it could.

        The models in `replaced` stay only until these are loaded: they take memory, but do not count for `max_loaded`.
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

    def _expected_weights_bytes(self, model: Model) -> int:
        """Memory for the weights in a model's file, of which CPU backends make two graphs for several instances."""
        instances = self._budget.instances and (model.settings.instances or self._budget.instances)
        twice = instances and instances > 1 and model.manifest.backend in ONNX_BACKENDS
        return model.manifest.file.size_bytes * (2 if twice else 1)

    def _least_bytes(self, model: Model) -> int:
        """Memory that a model is certain to take."""
        return self._cost_bytes.get(model.id, model.manifest.file.size_bytes)

    def _take(self, room: _Room, model: Model, *, counts: bool = True) -> None:
        room.count += counts
        room.taken_bytes += self.cost_bytes(model)
        room.alone &= model.settings.pinned

    def _is_full(self, room: _Room) -> bool:
        return self._budget.models is not None and room.count >= self._budget.models

    def _has_room(self, room: _Room, model: Model) -> bool:
        """A model that would be alone needs room only for its certain cost: unloading others could not help it."""
        if self._budget.memory_bytes is None:
            return True
        needed_bytes = self._least_bytes(model) if room.alone else self.cost_bytes(model) + room.overhead_bytes
        return room.taken_bytes + needed_bytes <= self._budget.memory_bytes


def _mean(known: float | None, newest: float) -> float:
    return newest if known is None else known + SMOOTHING * (newest - known)
