"""The same as `Rollout` where not all models are to be loaded: requests may name all, and have loaded what they name.

`Fitting` has the order in which models have a right to be there, and knows what fits; `Residence` has what follows.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from server.fitting import Budget, Claim, Fitting, Measured
from server.refusals import Cause, Refusal
from server.repository import Catalogue, Model, ModelKey
from server.residence import Residence
from server.rollout import Progress, Rollout

OPERATOR = ""
"""Who waits for what was asked for by its name, and for new versions of what is loaded; HTTP workers have names."""


class OnDemand(Rollout):
    """Models are known, loaded when they are asked for, and go when others need their room."""

    def __init__(
        self,
        scanned: Catalogue,
        default_model: str | None,
        engines: int,
        budget: Budget,
        first: Sequence[str] = (),
        patience_s: float = 60.0,
    ) -> None:
        """Load at first what is pinned, the default model and those named `first`, as far as they fit.

        What has not been loaded after `patience_s` is refused for now, for others to be loaded.
        """
        super().__init__(scanned, default_model, engines)
        self._patience_s = patience_s
        self._fitting = Fitting(budget, engines)
        self._residence = Residence(
            self._fitting, self._engines, self._homes, lambda each: each in self._proven or self._may_be_tried(each)
        )
        self._known: Mapping[str, Model] = {}
        self._successors: Set[str] = frozenset()  # of what is loaded, which they replace once they are
        self._asked: set[str] = set()  # names, until they are loaded or refused
        self._told_s: dict[tuple[int, str], float] = {}  # since when an engine loads a model
        for name in reversed([*([self._default] if self._default else []), *first]):
            for model in self._newest(name):
                self._fitting.touch(model.id)
        self._update()

    @property
    def usable(self) -> frozenset[str]:
        """Ids of the models that requests may begin with."""
        return self._residence.usable if self._ready else frozenset(self._residence.wanted)

    @property
    def loading(self) -> Mapping[str, float]:
        """Ids of the models that are being loaded, each with the seconds that this is likely to take."""
        return {model_id: self._fitting.load_s(model_id) for model_id in sorted(self._residence.loading)}

    def demanded(self, worker: str, waiting: Set[str], used: Sequence[str]) -> None:
        """Requests to an HTTP worker wait for these; it has used those since it last said so, in this order."""
        self._fitting.demanded(worker, waiting & self._known.keys(), [each for each in used if each in self._known])
        self._residence.reconsider()

    def worker_ended(self, worker: str) -> None:
        """No request of this worker waits any more."""
        self._fitting.gone(worker)
        self._residence.reconsider()

    def load(self, name: str) -> None:
        """See `Rollout`; it is loaded, whoever uses it."""
        super().load(name)
        self._asked.add(name)
        self._update()

    def start_engine(self, engine: int) -> list[Model]:
        """What the one before it had, as its requests wait for that; of a first one, what is to be there."""
        holding = self._engines[engine]
        ids = holding.loaded or (self._residence.wanted & self._proven if self._ready else self._residence.wanted)
        models = [
            model
            for model_id, model in self._known.items()
            if model_id in ids and holding in self._homes(model) and not (self._ready and holding.is_refused(model_id))
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
        self._told_s = {(at, model_id): told_s for (at, model_id), told_s in self._told_s.items() if at != engine}
        super().engine_lost(engine, now_s)
        self._residence.reconsider()

    def loaded(self, engine: int, model_id: str, refusal: Refusal | None, now_s: float) -> None:
        """See `Rollout`."""
        self._told_s.pop((engine, model_id), None)
        self._residence.ended(model_id, failed=refusal is not None)
        if refusal or all(model_id != model.id for model in self.served.models.values()):
            super().loaded(engine, model_id, refusal, now_s)
        else:  # as it is most of the time: requests may name it as before
            self._engines[engine].heard(model_id, None, now_s)
            self._proven.add(model_id)
            self._wait()

    def measured(self, engine: int, found: Mapping[str, Measured]) -> None:
        """See `Rollout`; what is too large for the budget goes, and is refused."""
        for model_id, measured in found.items():
            holding = self._engines[engine]
            self._fitting.learn(engine, self._known[model_id], measured, self._residence.models_of(holding))
        pinned = self._pinned(self._wanted)
        models = [self.served.members(entry) for entry in self.served.recipes.values()]
        models += [[self._known[model_id]] for model_id in found]
        if any(self._unfit(each, pinned) for each in models):
            self._update()
        self._residence.reconsider()

    def retry(self, now_s: float) -> bool:
        """See `Rollout`; what is refused for now may be asked for again then. What hangs is given up."""
        due = super().retry(now_s)
        for number, engine in enumerate(self._engines):
            for model_id in sorted(engine.loading) if engine.up else ():
                if now_s - self._told_s.setdefault((number, model_id), now_s) >= self._patience_s:
                    del self._told_s[number, model_id]
                    hangs = Refusal(Cause.NOT_NOW, f"it was not loaded within {self._patience_s:.0f} s")
                    engine.give_up(model_id, hangs, now_s)
                    due = True
        if due:
            self._update()
        return due

    def take_missing(self, engine: int) -> list[Model]:
        """What this engine, which is ready, is to load: one at a time, and where it has room by now."""
        model = self._residence.take_load(engine)
        return [model] if model else []

    def take_surplus(self, engine: int) -> list[str]:
        """See `Rollout`; also what others need the room of. It is no longer in `usable`."""
        return sorted(self._residence.take_surplus(engine))

    def outcome(self, name: str) -> Progress | Refusal:
        """How loading the newest version went."""
        versions = self._wanted.versions.get(name, {})
        key = ModelKey(name, max(versions, default=0))
        if self._ready and key in self.served.refused:
            return self.served.refused[key]
        if versions:
            ready = self._ready and all(model.id in self.usable for model in self._newest(name))
            return Progress.SERVED if ready else Progress.LOADING
        return super().outcome(name)

    def _newest(self, name: str) -> list[Model]:
        wanted = self._wanted
        versions = wanted.versions.get(name, {})
        return wanted.members(versions[max(versions)]) if versions else []

    def _update(self) -> None:
        wanted = self._wanted
        if self._ready:
            pinned = self._pinned(wanted)
            served, self._successors, refused = self._to_serve(wanted, self.served.models, pinned)
            whole = wanted.serving(served, refused)
            members = {key: whole.members(entry) for key, entry in whole.recipes.items()}
            unfit = {key: why for key, models in members.items() if (why := self._unfit(models, pinned))}
            recipes = {key: recipe for key, recipe in whole.recipes.items() if key not in unfit}
            self.served = replace(whole, recipes=recipes, refused={**whole.refused, **unfit})
        needed = {each for engine in self._engines for each in (*engine.loaded, *engine.loading, *engine.hanging)}
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
        """The models that requests may name, ids of those that follow others once they are loaded, and refusals."""
        models: dict[ModelKey, Model] = {}
        successors: dict[str, str] = {}
        refused: dict[ModelKey, Refusal] = {}
        names = {key.name for key, model in before.items() if self._is_there(model)}
        for key, model in wanted.models.items():
            known = before.get(key)
            old = known if known and known.id != model.id and self._is_there(known) else None
            if old:
                models[key] = old
            if refusal := self._why_not(model, pinned, [old] if old else []):
                refused[key] = refusal
            elif self._is_there(model) or not (old or (known is None and key.name in names)):
                models[key] = model
            else:
                successors[model.id] = key.name
        for key, old in before.items():
            broken = key.name not in self._unloaded and key in wanted.refused
            if key not in wanted.models and self._is_there(old) and (broken or key.name in successors.values()):
                models[key] = old
        return models, {*successors}, refused

    def _pinned(self, wanted: Catalogue) -> list[Model]:
        """What is pinned, as far as it fits."""
        pinned = [model for _, model in sorted(wanted.models.items()) if model.settings.pinned]
        fit = self._fitting.choose(Claim(model, self._residence.places(model)) for model in pinned)
        return [model for model in pinned if model.id in fit]

    def _why_not(self, model: Model, pinned: Sequence[Model], replaced: Sequence[Model]) -> Refusal | None:
        """Why it is not served, neither from what is there nor once it is loaded."""
        if self._residence.places(model):
            return self._unfit([model], pinned, replaced)
        return self._refusal(model)

    def _unfit(
        self, models: Sequence[Model], pinned: Sequence[Model], replaced: Sequence[Model] = ()
    ) -> Refusal | None:
        """Why these cannot be loaded together."""
        for engine in self._engines:
            here = [[one for one in each if engine in self._homes(one)] for each in (models, pinned, replaced)]
            if here[0] and (refusal := self._fitting.why_not(*here)):
                return refusal
        return None

    def _wait(self) -> None:
        """Nobody asks for new versions of what is loaded, and who asks for a model by its name does so once."""
        waiting = {*self._successors}
        for name in sorted(self._asked):
            missing = {model.id for model in self._newest(name) if not self._is_there(model)}
            if isinstance(self.outcome(name), Refusal) or not missing:
                self._asked.discard(name)
            else:
                waiting |= missing
        self._fitting.demanded(OPERATOR, waiting)
        self._residence.reconsider()
