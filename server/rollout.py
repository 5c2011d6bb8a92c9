"""Which models the engine is to load and to let go, and which requests may name: a state machine without any I/O.

A model is served once the engine has loaded and warmed it. What it replaces is served until then, and stays where the
new one is refused: a broken model takes no good one down. What is refused for now is loaded again, after a wait that
doubles with each attempt; what is refused for good when its files change, or when it is asked for.
"""

import math
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from enum import Enum, auto

from server.errors import Code, ServiceError
from server.refusals import Cause, Refusal, delay_s
from server.repository import Catalogue, Model, ModelKey

MAX_CRASHES = 2
"""Refuse a model after this many engines crashed loading it."""


class Progress(Enum):
    """How far loading a model is, unless it was refused."""

    LOADING = auto()
    SERVED = auto()
    """As the repository has it."""


@dataclass(slots=True)
class _Refused:
    """A model that the engine could not load, so many times in a row."""

    refusal: Refusal
    attempts: int
    retry_s: float
    """When to load it again."""


class Rollout:
    """What the repository holds, what was asked for, what the engine has, and what follows from it."""

    def __init__(self, scanned: Catalogue, default_model: str | None = None) -> None:
        """Begin with what a first scan found; `default_model` is the one that was asked for."""
        self._scanned = scanned
        self._default = default_model or scanned.default_model
        self._default_is_fixed = default_model is not None
        self._unloaded: set[str] = set()  # names, until they are asked for again
        self._started: set[str] = set()  # ids of what the newest engine was started with
        self._loaded: set[str] = set()  # ids of what it has, or the one before it had
        self._loading: set[str] = set()
        self._proven: set[str] = set()  # ids of what some engine had loaded
        self._refused: dict[str, _Refused] = {}  # by id
        self._again: set[str] = set()  # ids of what was refused and is to be loaded all the same
        self._crashes: Counter[str] = Counter()
        self._ready = False  # some engine was
        self.served = scanned
        """What requests may name; before the first engine is ready, all that it will try to load."""

    def scanned(self, catalogue: Catalogue, changed: Set[ModelKey] = frozenset()) -> None:
        """The repository holds something else by now: of the versions `changed`, the files.

        The default model stays what it was at first: in any case if it was asked for, else while there is such a model.
        """
        self._default = self._default or catalogue.default_model
        there = {*catalogue.versions, *(key.name for key in catalogue.refused)}
        if self._default_is_fixed or self._default in there:
            catalogue = replace(catalogue, default_model=self._default)
        self._scanned = catalogue
        for model in self._wanted.models.values():
            if model.key in changed:
                self._try_again(model.id)  # what was wrong may not be any more
        self._update()

    def load(self, name: str) -> None:
        """Serve what the repository holds of a model, also if it was unloaded, or refused; the reason may be gone.

        Raises:
            ServiceError: UNKNOWN_MODEL.
        """
        if name not in self._scanned.versions and not self._refusals(name):
            raise ServiceError(Code.UNKNOWN_MODEL, f"there is no model {name!r} in the repository")
        self._unloaded.discard(name)
        for model_id in self._needed(name):
            self._try_again(model_id)
        self._update()

    def unload(self, name: str) -> None:
        """Serve a model no more, until it is asked for.

        Raises:
            ServiceError: UNKNOWN_MODEL.
        """
        if name not in self.served.versions:
            raise ServiceError(Code.UNKNOWN_MODEL, f"no model {name!r} is served")
        self._unloaded.add(name)
        self._update()

    def start_engine(self) -> list[Model]:
        """What a new engine loads before it is ready."""
        models = {model.id: model for model in self.served.models.values()}
        models |= {model.id: model for model in self._missing()}
        self._started = set(models)
        self._loading = self._started - self._loaded
        return list(models.values())

    def engine_ready(self, refused: Mapping[str, Refusal], now_s: float) -> None:
        """The new engine has what it was started with, but for what it refused, by id."""
        self._ready = True
        self._loaded = self._started - refused.keys()
        self._loading.clear()
        for model_id in self._loaded:
            self._accept(model_id)
        for model_id, refusal in refused.items():
            self._refuse(model_id, refusal, now_s)
        self._update()

    def engine_lost(self, now_s: float) -> None:
        """It died; the next one gets what is served, and once more what it may have died of.

        What engines die of is tried again only if one has ever loaded it: it would take all other models down with it.
        """
        for model_id in self._loading:
            self._crashes[model_id] += 1
            if self._crashes[model_id] >= MAX_CRASHES:
                cause = Cause.NOT_NOW if model_id in self._proven else Cause.NEVER
                died = f"{self._crashes[model_id]} inference engines died while they loaded it"
                self._refuse(model_id, Refusal(cause, died), now_s)
        self._update()

    def retry(self, now_s: float) -> bool:
        """Whether it is time to load something again; then `take_missing` names it."""
        due = {model_id for model_id, refused in self._refused.items() if now_s >= refused.retry_s} - self._again
        self._again |= due
        return bool(due)

    def take_missing(self) -> list[Model]:
        """What the running engine is to load; each is named once."""
        missing = [model for model in self._missing() if model.id not in self._loading]
        self._loading |= {model.id for model in missing}
        return missing

    def loaded(self, model_id: str, refusal: Refusal | None, now_s: float) -> None:
        """The running engine has loaded a model, or refused it."""
        self._loading.discard(model_id)
        if refusal is None:
            self._loaded.add(model_id)
            self._accept(model_id)
        else:
            self._refuse(model_id, refusal, now_s)
        self._update()

    def take_surplus(self) -> list[str]:
        """Ids of what the engine has and nobody may name any more; each is named once."""
        surplus = self._loaded - self._ids(self.served)
        self._loaded -= surplus
        return list(surplus)

    def outcome(self, name: str) -> Progress | Refusal:
        """How loading a model went."""
        if self._needed(name) & {model.id for model in self._missing()}:
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

    def _missing(self) -> list[Model]:
        return [
            model
            for model in self._wanted.models.values()
            if model.id not in self._loaded and (model.id not in self._refused or model.id in self._again)
        ]

    def _needed(self, name: str) -> set[str]:
        """Ids of what the engine must have for a model or an ensemble to be served."""
        wanted = self._wanted
        return {model.id for entry in wanted.versions.get(name, {}).values() for model in wanted.members(entry)}

    def _accept(self, model_id: str) -> None:
        self._proven.add(model_id)
        self._refused.pop(model_id, None)
        self._again.discard(model_id)
        self._crashes.pop(model_id, None)

    def _refuse(self, model_id: str, refusal: Refusal, now_s: float) -> None:
        before = self._refused.get(model_id)
        attempts = before.attempts + 1 if before else 1
        retry_s = now_s + delay_s(attempts) if refusal.is_tried_again else math.inf
        self._refused[model_id] = _Refused(refusal, attempts, retry_s)
        self._again.discard(model_id)

    def _try_again(self, model_id: str) -> None:
        """As if it had never been tried; until that has been done, it is refused for the old reason."""
        self._crashes.pop(model_id, None)
        if refused := self._refused.get(model_id):
            refused.attempts = 0
            self._again.add(model_id)

    def _refusals(self, name: str) -> list[Refusal]:
        refused = self.served.refused if self._ready else self._scanned.refused
        return [refusal for key, refusal in refused.items() if key.name == name]

    def _update(self) -> None:
        if not self._ready:
            return  # requests may name what the first engine tries to load
        wanted = self._wanted
        there = {key.name for key, model in wanted.models.items() if model.id in self._loaded}
        awaited = {key.name for key in wanted.models} - there
        models: dict[ModelKey, Model] = {}
        for key in {**wanted.models, **self.served.models}:
            new, old = wanted.models.get(key), self.served.models.get(key)
            broken = key.name not in self._unloaded and key in wanted.refused
            if new and new.id in self._loaded:
                models[key] = new
            elif old and old.id in self._loaded and (new or broken or key.name in awaited):
                models[key] = old
        found = ((key, self._refused.get(model.id)) for key, model in wanted.models.items())
        self.served = wanted.serving(models, {key: refused.refusal for key, refused in found if refused})

    @staticmethod
    def _ids(catalogue: Catalogue) -> set[str]:
        return {model.id for model in catalogue.models.values()}
