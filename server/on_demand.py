"""The variant of `Rollout` for servers that do not load all models: requests may name any, and cause it to be loaded.

`Fitting` puts models in an order and knows what fits; `Residence` decides what each engine loads and evicts.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from server.fitting import Budget, Fitting, Measured
from server.refusals import Refusal
from server.repository import Catalogue, Model, ModelKey
from server.residence import Residence
from server.rollout import Progress, Rollout

OPERATOR = ""
"""Stands beside the names of HTTP workers: waits for models asked for by name, and for new versions of loaded ones."""


class OnDemand(Rollout):
    """Loads models when requests need them, and evicts them when others need their room."""

    def __init__(
        self,
        scanned: Catalogue,
        default_model: str | None,
        engines: int,
        budget: Budget,
        first: Sequence[str] = (),
        patience_s: float = 60.0,
    ) -> None:
        """At first, load the pinned models, the default model and those named `first`, as far as they fit."""
        super().__init__(scanned, default_model, engines, patience_s)
        self._fitting = Fitting(budget, engines)
        self._residence = Residence(self._fitting, self._holdings)
        self._known: Mapping[str, Model] = {}
        self._successors: Set[str] = frozenset()  # ids of new versions, which replace loaded ones
        self._asked: set[str] = set()  # names, until their models are loaded or refused
        for name in reversed([*([self._default] if self._default else []), *first]):
            for model in self._newest(name):
                self._fitting.touch(model.id)
        self._update()

    @property
    def usable(self) -> frozenset[str]:
        """See `Rollout`."""
        return self._residence.usable if self._holdings.ready else frozenset(self._residence.wanted)

    @property
    def loading(self) -> Mapping[str, float]:
        """See `Rollout`; the seconds are estimates."""
        return {model_id: self._fitting.load_s(model_id) for model_id in sorted(self._residence.loading)}

    def demanded(self, worker: str, waiting: Set[str], used: Sequence[str]) -> None:
        """See `Rollout`."""
        self._fitting.demanded(worker, waiting & self._known.keys(), [each for each in used if each in self._known])
        self._residence.reconsider()

    def worker_ended(self, worker: str) -> None:
        """See `Rollout`."""
        self._fitting.gone(worker)
        self._residence.reconsider()

    def load(self, name: str) -> None:
        """See `Rollout`; the model is loaded even if no request needs it."""
        super().load(name)
        self._asked.add(name)
        self._update()

    def start_engine(self, engine: int) -> list[Model]:
        """See `Rollout`: what its predecessor had, since requests wait for it; at first, the wanted models."""
        holdings, holding = self._holdings, self._holdings.engines[engine]
        wanted = self._residence.wanted
        ids = holding.loaded or (wanted & holdings.proven if holdings.ready else wanted)
        models = [
            model
            for model_id, model in self._known.items()
            if model_id in ids
            and holding in holdings.homes(model)
            and not (holdings.ready and holding.is_refused(model_id))
        ]
        holding.start(model.id for model in models)
        self._residence.reconsider()
        return models

    def engine_ready(self, engine: int, refused: Mapping[str, Refusal], now_s: float) -> None:
        """See `Rollout`."""
        self._fitting.restarted(engine)
        super().engine_ready(engine, refused, now_s)

    def engine_lost(self, engine: int, now_s: float) -> None:
        """See `Rollout`."""
        super().engine_lost(engine, now_s)
        self._residence.reconsider()

    def loaded(self, engine: int, model_id: str, refusal: Refusal | None, now_s: float) -> None:
        """See `Rollout`."""
        self._residence.ended(model_id, failed=refusal is not None)
        if refusal or all(model_id != model.id for model in self.served.models.values()):
            super().loaded(engine, model_id, refusal, now_s)
        else:  # the usual case: requests may name it as before
            self._holdings.heard(engine, model_id, None, now_s)
            self._wait()

    def measured(self, engine: int, found: Mapping[str, Measured]) -> None:
        """See `Rollout`; models too large for the budget are refused and unloaded."""
        for model_id, measured in found.items():
            self._residence.learn(engine, self._known[model_id], measured)
        pinned = self._residence.pinned(self._wanted)
        models = [self.served.members(entry) for entry in self.served.recipes.values()]
        models += [[self._known[model_id]] for model_id in found]
        if any(self._residence.why_unfit(each, pinned) for each in models):
            self._update()
        self._residence.reconsider()

    def take_missing(self, engine: int) -> list[Model]:
        """See `Rollout`; only once the engine has room for the model."""
        model = self._residence.take_load(engine)
        return [model] if model else []

    def take_surplus(self, engine: int) -> list[str]:
        """See `Rollout`; also models evicted to make room, which are no longer `usable`."""
        return sorted(self._residence.take_surplus(engine))

    def outcome(self, name: str) -> Progress | Refusal:
        """See `Rollout`: of the newest version."""
        versions = self._wanted.versions.get(name, {})
        key = ModelKey(name, max(versions, default=0))
        if self._holdings.ready and key in self.served.refused:
            return self.served.refused[key]
        if versions:
            ready = self._holdings.ready and all(model.id in self.usable for model in self._newest(name))
            return Progress.SERVED if ready else Progress.LOADING
        return super().outcome(name)

    def _newest(self, name: str) -> list[Model]:
        wanted = self._wanted
        versions = wanted.versions.get(name, {})
        return wanted.members(versions[max(versions)]) if versions else []

    def _update(self) -> None:
        wanted = self._wanted
        if self._holdings.ready:
            pinned = self._residence.pinned(wanted)
            served, self._successors, refused = self._to_serve(wanted, self.served.models, pinned)
            whole = wanted.serving(served, refused)
            members = {key: whole.members(entry) for key, entry in whole.recipes.items()}
            unfit = {key: why for key, models in members.items() if (why := self._residence.why_unfit(models, pinned))}
            recipes = {key: recipe for key, recipe in whole.recipes.items() if key not in unfit}
            self.served = replace(whole, recipes=recipes, refused={**whole.refused, **unfit})
        needed = {
            each for engine in self._holdings.engines for each in (*engine.loaded, *engine.loading, *engine.hanging)
        }
        old = {model_id: model for model_id, model in self._known.items() if model_id in needed}
        served_now = {model.id: model for model in self.served.models.values()}
        wanted_now = {model.id: model for model in wanted.models.values()}
        self._known = {**old, **served_now, **wanted_now}
        self._fitting.forget_all_but({*self._known, *(model.id for model in self._scanned.models.values())})
        current = served_now.keys() | wanted_now.keys()
        self._residence.consider(self._known, current, current - wanted_now.keys())
        self._wait()

    def _to_serve(
        self, wanted: Catalogue, before: Mapping[ModelKey, Model], pinned: Sequence[Model]
    ) -> tuple[dict[ModelKey, Model], set[str], dict[ModelKey, Refusal]]:
        """Models that requests may name, ids of those that will replace others once they are loaded, and refusals."""
        models: dict[ModelKey, Model] = {}
        successors: dict[str, str] = {}
        refused: dict[ModelKey, Refusal] = {}
        names = {key.name for key, model in before.items() if self._holdings.has(model)}
        for key, model in wanted.models.items():
            known = before.get(key)
            old = known if known and known.id != model.id and self._holdings.has(known) else None
            if old:
                models[key] = old
            if refusal := self._residence.why_not(model, pinned, [old] if old else []):
                refused[key] = refusal
            elif self._holdings.has(model) or not (old or (known is None and key.name in names)):
                models[key] = model
            else:
                successors[model.id] = key.name
        for key, old in before.items():
            broken = key.name not in self._unloaded and wanted.is_refused(key)
            if key not in wanted.models and self._holdings.has(old) and (broken or key.name in successors.values()):
                models[key] = old
        return models, {*successors}, refused

    def _wait(self) -> None:
        """Wait, as OPERATOR, for new versions and for models asked for by name: no request keeps asking for these."""
        waiting = {*self._successors}
        for name in sorted(self._asked):
            missing = {model.id for model in self._newest(name) if not self._holdings.has(model)}
            if isinstance(self.outcome(name), Refusal) or not missing:
                self._asked.discard(name)
            else:
                waiting |= missing
        self._fitting.demanded(OPERATOR, waiting)
        self._residence.reconsider()
