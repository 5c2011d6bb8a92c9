"""Which models each engine has, loads and evicts where not all are to be loaded: decided without I/O.

If the number of models is bounded, an engine loads one more beside them and then evicts the last in order: a load that
fails costs no other model its place. If their memory is bounded, the engine makes room first, and loads the evicted
models again if the load fails.
"""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from server.fitting import Claim, Fitting, Measured
from server.holding import Holding
from server.holdings import Holdings
from server.refusals import Refusal
from server.repository import Catalogue, Model


class _Decided(NamedTuple):
    """What follows from the order and the room."""

    wanted: Set[str]
    following: Sequence[Model | None]
    """what each engine is to load next"""
    leaving: Set[str]


class Residence:
    """The models in all engines, by their ids. All engines evict a model at one time."""

    def __init__(self, fitting: Fitting, holdings: Holdings) -> None:
        self._fitting = fitting
        self._holdings = holdings
        self._models: Mapping[str, Model] = {}
        self._current: Set[str] = frozenset()
        self._replaced: Set[str] = frozenset()
        self._decided: _Decided | None = None
        self._made_room = False
        self._evicted: set[str] = set()  # to make room for what is being loaded
        self._back: set[str] = set()  # evicted models to load again, since that load failed

    @property
    def loading(self) -> Set[str]:
        """Models that engines are loading and none has."""
        return self._holdings.loading - self._holdings.loaded

    @property
    def wanted(self) -> Set[str]:
        """Models that are to be loaded, as far as there is room."""
        return self._decide().wanted

    @property
    def usable(self) -> frozenset[str]:
        """Models for which requests may start now."""
        return self._holdings.loaded - self._decide().leaving

    def consider(self, models: Mapping[str, Model], current: Set[str], replaced: Set[str]) -> None:
        """Decide anew: these are all models; of the `current` ones, those `replaced` stay until others are loaded."""
        self._models, self._current, self._replaced = models, current, replaced
        self._decided = None

    def reconsider(self) -> None:
        """Decide anew, since something else has changed."""
        self._decided = None

    def ended(self, model_id: str, *, failed: bool) -> None:
        """Note that a load has ended."""
        self._back.discard(model_id)
        if failed:
            self._back |= self._evicted
        self._evicted.clear()
        self._decided = None

    def take_load(self, engine: int) -> Model | None:
        """The model that this engine, which is ready, is to load now; it is returned once."""
        if self._made_room:
            self._made_room, self._decided = False, None
        holding, model = self._holdings.engines[engine], self._decide().following[engine]
        if model is None or not self._fitting.may_load(engine, model, self._models_of(holding), beside=True):
            return None
        holding.load(model.id)
        self._decided = None
        return model

    def take_surplus(self, engine: int) -> Set[str]:
        """Models that this engine is to evict, now that no request needs them; each is returned once."""
        holding, decided = self._holdings.engines[engine], self._decide()
        surplus = holding.loaded & decided.leaving
        holding.loaded -= surplus
        self._made_room |= bool(surplus)  # decided anew when all engines have evicted theirs
        if any(decided.following):
            self._evicted |= surplus
        return surplus

    def learn(self, engine: int, model: Model, measured: Measured) -> None:
        """Note what an engine measured when it loaded a model."""
        self._fitting.learn(engine, model, measured, self._models_of(self._holdings.engines[engine]))
        self._decided = None

    def pinned(self, catalogue: Catalogue) -> list[Model]:
        """The pinned models, as far as they fit."""
        pinned = [model for _, model in sorted(catalogue.models.items()) if model.settings.pinned]
        fit = self._fitting.choose(Claim(model, self._places(model)) for model in pinned)
        return [model for model in pinned if model.id in fit]

    def why_not(self, model: Model, pinned: Sequence[Model], replaced: Sequence[Model]) -> Refusal | None:
        """Why a model can be served neither from what is loaded nor once it is."""
        if self._places(model):
            return self.why_unfit([model], pinned, replaced)
        return self._holdings.why_not(model)

    def why_unfit(
        self, models: Sequence[Model], pinned: Sequence[Model], replaced: Sequence[Model] = ()
    ) -> Refusal | None:
        """Why these models cannot be loaded together, beside the pinned ones and those that they replace."""
        for engine in self._holdings.engines:
            here = [[one for one in each if engine in self._holdings.homes(one)] for each in (models, pinned, replaced)]
            if here[0] and (refusal := self._fitting.why_not(*here)):
                return refusal
        return None

    def _models_of(self, holding: Holding) -> list[Model]:
        return [self._models[model_id] for model_id in holding.loaded]

    def _places(self, model: Model) -> list[int]:
        """The engines that have the model or could load it."""
        homes = self._holdings.homes(model)
        return [
            number
            for number, engine in enumerate(self._holdings.engines)
            if engine in homes and (model.id in engine.loaded or engine.lacks(model.id))
        ]

    def _decide(self) -> _Decided:
        if self._decided is None:
            self._decided = self._decide_now()
        return self._decided

    def _decide_now(self) -> _Decided:
        engines, there = self._holdings.engines, self._holdings.loaded
        replaced = there & self._replaced
        current = [model for model_id, model in self._models.items() if model_id in self._current]
        ordered = self._fitting.ordered(current, replaced)
        places = ((model, self._places(model)) for model in ordered)
        to_be = self._fitting.choose(Claim(model, at, model.id not in replaced) for model, at in places if at)
        candidates = [model for model in ordered if model.id in to_be]
        following = [
            next((model for model in candidates if self._is_next(number, model, there)), None)
            if engine.up and not engine.loading
            else None
            for number, engine in enumerate(engines)
        ]
        taken = [
            engine.loaded | engine.loading | ({one.id} if one else set())
            for engine, one in zip(engines, following, strict=True)
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
        """Whether an engine may load this; it evicts others only for models pinned, awaited or loaded elsewhere."""
        engine = self._holdings.engines[number]
        if engine not in self._holdings.homes(model) or not engine.lacks(model.id):
            return False
        if not self._holdings.may_try(model.id):
            return False
        if model.settings.pinned or self._fitting.is_awaited(model.id) or model.id in there:
            return True
        return model.id in self._back and self._fitting.may_load(number, model, self._models_of(engine), beside=False)
