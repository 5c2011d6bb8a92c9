"""Which models each engine has, is to load and to let go of where not all are to be loaded: decided without I/O.

Where the number of models is bounded, one is loaded beside the others, and then the last in order goes: a load that
fails has cost no other its place. Where their memory is, room is made first, and what had it is loaded again if the
load fails.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

from server.fitting import Claim, Fitting
from server.holding import Holding
from server.repository import Model


class _Decided(NamedTuple):
    """What follows from the order and the room."""

    wanted: Set[str]
    following: Sequence[Model | None]
    """what each engine is to load next"""
    leaving: Set[str]


class Residence:
    """Of the models, by their ids, in all engines. What goes is let go of by all of them at one time."""

    def __init__(
        self,
        fitting: Fitting,
        engines: Sequence[Holding],
        homes: Callable[[Model], Sequence[Holding]],
        may_be_tried: Callable[[str], bool],
    ) -> None:
        """`homes` are the engines that are to have a model; `may_be_tried` says whether one may load it now."""
        self._fitting = fitting
        self._engines = engines
        self._homes = homes
        self._may_be_tried = may_be_tried
        self._models: Mapping[str, Model] = {}
        self._current: Set[str] = frozenset()
        self._replaced: Set[str] = frozenset()
        self._decided: _Decided | None = None
        self._made_room = False
        self._sent_away: set[str] = set()  # for what is being loaded
        self._back: set[str] = set()  # of these, where that has failed

    @property
    def there(self) -> Set[str]:
        """What some engine has, or had when it was last there."""
        return frozenset().union(*(engine.loaded for engine in self._engines))

    @property
    def loading(self) -> Set[str]:
        """What engines load, and none has."""
        return frozenset().union(*(engine.loading for engine in self._engines)) - self.there

    @property
    def wanted(self) -> Set[str]:
        """What is to be loaded, as far as there is room."""
        return self._decide().wanted

    @property
    def usable(self) -> frozenset[str]:
        """What requests may begin with."""
        return frozenset(self.there - self._decide().leaving)

    def consider(self, models: Mapping[str, Model], current: Set[str], replaced: Set[str]) -> None:
        """Decide anew: these are all models; of the `current` ones, those `replaced` stay until others are loaded."""
        self._models, self._current, self._replaced = models, current, replaced
        self._decided = None

    def reconsider(self) -> None:
        """Decide anew, as something else has changed."""
        self._decided = None

    def ended(self, model_id: str, *, failed: bool) -> None:
        """A load has."""
        self._back.discard(model_id)
        if failed:
            self._back |= self._sent_away
        self._sent_away.clear()
        self._decided = None

    def take_load(self, engine: int) -> Model | None:
        """What this engine, which is ready, is to load now; it is named once."""
        if self._made_room:
            self._made_room, self._decided = False, None
        holding, model = self._engines[engine], self._decide().following[engine]
        if model is None or not self._fitting.may_load(engine, model, self.models_of(holding), beside=True):
            return None
        holding.load(model.id)
        self._decided = None
        return model

    def take_surplus(self, engine: int) -> Set[str]:
        """What this engine is to let go of, as no request needs it; each is named once."""
        holding, decided = self._engines[engine], self._decide()
        surplus = holding.loaded & decided.leaving
        holding.loaded -= surplus
        self._made_room |= bool(surplus)  # decided anew when all engines have let go
        if any(decided.following):
            self._sent_away |= surplus
        return surplus

    def models_of(self, holding: Holding) -> list[Model]:
        """What an engine has."""
        return [self._models[model_id] for model_id in holding.loaded]

    def places(self, model: Model) -> list[int]:
        """The engines that have it or could load it."""
        homes = self._homes(model)
        return [
            number
            for number, engine in enumerate(self._engines)
            if engine in homes and (model.id in engine.loaded or engine.may_load(model.id))
        ]

    def _decide(self) -> _Decided:
        if self._decided is None:
            self._decided = self._decide_now()
        return self._decided

    def _decide_now(self) -> _Decided:
        there = self.there
        replaced = there & self._replaced
        current = [model for model_id, model in self._models.items() if model_id in self._current]
        ordered = self._fitting.ordered(current, replaced)
        places = ((model, self.places(model)) for model in ordered)
        to_be = self._fitting.choose(Claim(model, at, model.id not in replaced) for model, at in places if at)
        candidates = [model for model in ordered if model.id in to_be]
        following = [
            next((model for model in candidates if self._is_next(number, model, there)), None)
            if engine.up and not engine.loading
            else None
            for number, engine in enumerate(self._engines)
        ]
        taken = [
            engine.loaded | engine.loading | ({one.id} if one else set())
            for engine, one in zip(self._engines, following, strict=True)
        ]
        ids = {model.id for model in ordered}
        last = [model for model in current if model.id in there and model.id not in ids]
        kept = self._fitting.choose(
            Claim(model, at, model.id in there)
            for model in (*ordered, *last)
            if (at := [number for number, ids in enumerate(taken) if model.id in ids])
        )
        return _Decided(to_be, following, there - kept)

    def _is_next(self, number: int, model: Model, there: Set[str]) -> bool:
        """Whether an engine may load this; others make room only for what somebody waits for, or uses elsewhere."""
        engine = self._engines[number]
        if engine not in self._homes(model) or model.id in engine.loaded or not engine.may_load(model.id):
            return False
        if not self._may_be_tried(model.id):
            return False
        if model.settings.pinned or self._fitting.is_awaited(model.id) or model.id in there:
            return True
        return model.id in self._back and self._fitting.may_load(number, model, self.models_of(engine), beside=False)
