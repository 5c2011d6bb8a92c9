"""Which models the engines load and unload, and which models requests may name: a state machine without any I/O.

A model is served once every running engine assigned to it has loaded and warmed it, or refused it, and at least one has
it. The version it replaces is served until then, and stays if all engines refuse the new one: a broken model takes no
good one down. Nor does it take down more than one engine (`Holdings`): once the server serves, one engine alone loads a
model that no engine has ever loaded. A model refused for now is retried after a wait that doubles with each attempt; a
model refused for good is retried when its files change, or when a client asks to load it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from enum import Enum, auto

from server.errors import Code, ServiceError
from server.fitting import Measured
from server.holdings import Holdings
from server.refusals import Cause, Refusal
from server.repository import Catalogue, Model, ModelKey


class Progress(Enum):
    """How far loading a model is, unless it was refused."""

    LOADING = auto()
    SERVED = auto()
    """Requests get the model as the repository has it."""


class Rollout:
    """What the repository holds, what clients asked for, what the engines have, and what to do about it."""

    def __init__(
        self, scanned: Catalogue, default_model: str | None = None, engines: int = 1, patience_s: float = 60.0
    ) -> None:
        """Start from the first scan; `default_model` is the one that the operator set.

        A model that has not been loaded after `patience_s` is refused for now, so that others can be loaded.
        """
        self._scanned = scanned
        self._default = default_model or scanned.default_model
        self._default_is_fixed = default_model is not None
        self._unloaded: set[str] = set()  # names, until someone asks to load them again
        self._holdings = Holdings(engines)
        self._patience_s = patience_s
        self.served = scanned
        """The models that requests may name; before the first engine is ready, all that the engines will try."""

    @property
    def held(self) -> tuple[frozenset[str], ...]:
        """Ids of the models that each engine has, or had when it was last up."""
        return tuple(frozenset(engine.loaded) for engine in self._holdings.engines)

    @property
    def usable(self) -> frozenset[str] | None:
        """Ids of the models for which requests may start now; None: all that they may name."""
        return None

    @property
    def loading(self) -> Mapping[str, float]:
        """Models that requests may name and that are being loaded: by id, the seconds that this takes."""
        return {}

    @property
    def states(self) -> Counter[str]:
        """How many of the wanted models are loaded, loading, unloaded."""
        there, loading = self._holdings.loaded, self._holdings.loading
        return Counter(
            "loaded" if model.id in there else "loading" if model.id in loading else "unloaded"
            for model in self._wanted.models.values()
        )

    def demanded(self, worker: str, waiting: Set[str], used: Sequence[str]) -> None:
        """Note the models that an HTTP worker's requests wait for, and those used since its last report, in order."""

    def worker_ended(self, worker: str) -> None:
        """Forget what this worker's requests waited for."""

    def measured(self, engine: int, found: Mapping[str, Measured]) -> None:
        """Note what an engine measured of models that it loaded, by id, in loading order."""

    def is_up(self, engine: int) -> bool:
        """Whether the engine is ready."""
        return self._holdings.engines[engine].up

    def scanned(self, catalogue: Catalogue, changed: Set[ModelKey] = frozenset()) -> None:
        """Take over a new scan of the repository, in which the files of the versions `changed` are different.

        The default model stays the first one: always if the operator set it, else while the repository has it.
        """
        self._default = self._default or catalogue.default_model
        there = {*catalogue.versions, *(key.name for key in catalogue.refused)}
        if self._default_is_fixed or self._default in there:
            catalogue = replace(catalogue, default_model=self._default)
        self._scanned = catalogue
        for model in self._wanted.models.values():
            if model.key in changed:
                self._holdings.try_again(model.id)  # the new files may be good
        self._update()

    def load(self, name: str) -> None:
        """Serve what the repository holds of a model, even if it was unloaded or refused; the reason may be gone.

        Raises:
            ServiceError: UNKNOWN_MODEL.
        """
        if name not in self._scanned.versions and not self._refusals(name):
            raise ServiceError(Code.UNKNOWN_MODEL, f"there is no model {name!r} in the repository")
        self._unloaded.discard(name)
        for model in self._needed(name):
            self._holdings.try_again(model.id)
        self._update()

    def unload(self, name: str) -> None:
        """Stop serving a model until a client asks to load it.

        Raises:
            ServiceError: UNKNOWN_MODEL.
        """
        if name not in self.served.versions:
            raise ServiceError(Code.UNKNOWN_MODEL, f"no model {name!r} is served")
        self._unloaded.add(name)
        self._update()

    def start_engine(self, engine: int) -> list[Model]:
        """Models that a new engine loads before it is ready: those served, and others that put these at no risk."""
        holdings, holding = self._holdings, self._holdings.engines[engine]
        refused = holding.is_refused if holdings.ready else lambda _: False
        served = {model.id: model for model in self.served.models.values() if not refused(model.id)}
        lacking = {model.id: model for model in self._wanted.models.values() if holding.lacks(model.id)}
        if any(other.up for other in holdings.engines):
            lacking = {model_id: model for model_id, model in lacking.items() if model_id in holdings.proven}
        models = [model for model in {**served, **lacking}.values() if holding in holdings.homes(model)]
        holding.start(model.id for model in models)
        return models

    def engine_ready(self, engine: int, refused: Mapping[str, Refusal], now_s: float) -> None:
        """Note that a new engine has the models it was started with, except those it refused, by id."""
        self._holdings.engine_ready(engine, refused, now_s)
        self._update()

    def engine_lost(self, engine: int, now_s: float) -> None:
        """Note that an engine died. Its successor gets the served models, also those that may have crashed it."""
        self._holdings.engine_lost(engine, now_s)
        self._update()

    def retry(self, now_s: float) -> bool:
        """Whether some refused model is due for another attempt, or a load is given up, as it hangs."""
        due = self._holdings.retry(now_s, self._patience_s)
        if due:
            self._update()
        return due

    def take_missing(self, engine: int) -> list[Model]:
        """The model that this engine, which is ready, is to load next, if any; each is returned once.

        An engine gets one at a time, so it is known which one it dies of, or hangs in. No two engines try unproven ones
        at one time, since both might die.
        """
        holdings, holding = self._holdings, self._holdings.engines[engine]
        if holding.loading:
            return []
        alone = holdings.loading <= holdings.proven
        for model in self._wanted.models.values():
            may_try = holdings.may_try(model.id) and (alone or model.id in holdings.proven)
            if may_try and holding.lacks(model.id) and holding in holdings.homes(model):
                holding.load(model.id)
                return [model]
        return []

    def loaded(self, engine: int, model_id: str, refusal: Refusal | None, now_s: float) -> None:
        """Note that a running engine has loaded a model, or refused it."""
        self._holdings.heard(engine, model_id, refusal, now_s)
        self._update()

    def take_surplus(self, engine: int) -> list[str]:
        """Ids of models that the engine has and that are neither served nor wanted any more; each is returned once."""
        holding = self._holdings.engines[engine]
        surplus = holding.loaded - _ids(self.served) - _ids(self._wanted)
        holding.loaded -= surplus
        return list(surplus)

    def outcome(self, name: str) -> Progress | Refusal:
        """How loading a model went."""
        if any(self._holdings.awaits(model) for model in self._needed(name)):
            return Progress.LOADING
        if refused := self._refusals(name):
            causes = {refusal.cause for refusal in refused}
            cause = Cause.NOT_NOW if Cause.NOT_NOW in causes else Cause.NEVER
            return Refusal(cause, "; ".join(refusal.reason for refusal in refused))
        if name in self.served.versions:
            return Progress.SERVED
        return Refusal(Cause.NEVER, f"{name} lacks a model that is not served")

    @property
    def _wanted(self) -> Catalogue:
        return self._scanned.without(self._unloaded)

    def _needed(self, name: str) -> list[Model]:
        """The models that engines must have loaded for this model or ensemble to be served."""
        wanted = self._wanted
        return [model for entry in wanted.versions.get(name, {}).values() for model in wanted.members(entry)]

    def _refusals(self, name: str) -> list[Refusal]:
        refused = self.served.refused if self._holdings.ready else self._scanned.refused
        return [refusal for key, refusal in refused.items() if key.name == name]

    def _update(self) -> None:
        if not self._holdings.ready:
            return  # until then, requests may name every model that the first engine tries
        holdings, wanted = self._holdings, self._wanted
        ids = _ids(self.served)
        there = {
            key
            for key, model in wanted.models.items()
            if holdings.has(model) and (model.id in ids or not holdings.awaits(model))
        }
        awaited = {key.name for key in wanted.models} - {key.name for key in there}
        models: dict[ModelKey, Model] = {}
        for key in {**wanted.models, **self.served.models}:
            new, old = wanted.models.get(key), self.served.models.get(key)
            broken = key.name not in self._unloaded and wanted.is_refused(key)
            if new and key in there:
                models[key] = new
            elif old and holdings.has(old) and (new or broken or key.name in awaited):
                models[key] = old
        found = ((key, holdings.why_not(model)) for key, model in wanted.models.items())
        self.served = wanted.serving(models, {key: refusal for key, refusal in found if refusal})


def _ids(catalogue: Catalogue) -> set[str]:
    return {model.id for model in catalogue.models.values()}
