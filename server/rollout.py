"""Which models the engine is to load and to let go, and which requests may name: a state machine without any I/O.

A model is served once the engine has loaded and warmed it. What it replaces is served until then, and stays where the
new one is refused: a broken model takes no good one down.
"""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import replace

from server.errors import Code, ServiceError
from server.repository import Catalogue, Model, ModelKey

MAX_CRASHES = 2
"""Refuse a model after this many engines crashed loading it."""


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
        self._reasons: dict[str, str] = {}  # by id, why it was refused
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
                self._forgive(model.id)  # what was wrong may not be any more
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
            self._forgive(model_id)
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

    def engine_ready(self, refused: Mapping[str, str]) -> None:
        """The new engine has what it was started with, but for what it refused, by id."""
        self._ready = True
        self._loaded = self._started - refused.keys()
        self._loading.clear()
        for model_id in self._loaded:
            self._forgive(model_id)
        self._reasons |= refused
        self._update()

    def engine_lost(self) -> None:
        """It died; the next one gets what is served, and once more what it may have died of."""
        for model_id in self._loading:
            self._crashes[model_id] += 1
            if self._crashes[model_id] >= MAX_CRASHES:
                self._reasons[model_id] = f"{MAX_CRASHES} inference engines died while they loaded it"
        self._update()

    def take_missing(self) -> list[Model]:
        """What the running engine is to load; each is named once."""
        missing = [model for model in self._missing() if model.id not in self._loading]
        self._loading |= {model.id for model in missing}
        return missing

    def loaded(self, model_id: str, reason: str | None) -> None:
        """The running engine has loaded a model, or refused it for a reason."""
        self._loading.discard(model_id)
        if reason is None:
            self._loaded.add(model_id)
            self._forgive(model_id)
        else:
            self._reasons[model_id] = reason
        self._update()

    def take_surplus(self) -> list[str]:
        """Ids of what the engine has and nobody may name any more; each is named once."""
        surplus = self._loaded - self._ids(self.served)
        self._loaded -= surplus
        return list(surplus)

    def outcome(self, name: str) -> str | None:
        """How loading a model went: "" where it is served as the repository has it, else why not; None: it goes on."""
        if self._needed(name) & {model.id for model in self._missing()}:
            return None
        refused = "; ".join(self._refusals(name))
        return refused or ("" if name in self.served.versions else f"{name} lacks a model that is not served")

    @property
    def _wanted(self) -> Catalogue:
        return self._scanned.without(self._unloaded)

    def _missing(self) -> list[Model]:
        return [
            model
            for model in self._wanted.models.values()
            if model.id not in self._loaded and model.id not in self._reasons
        ]

    def _needed(self, name: str) -> set[str]:
        """Ids of what the engine must have for a model or an ensemble to be served."""
        wanted = self._wanted
        return {model.id for entry in wanted.versions.get(name, {}).values() for model in wanted.members(entry)}

    def _forgive(self, model_id: str) -> None:
        self._reasons.pop(model_id, None)
        self._crashes.pop(model_id, None)

    def _refusals(self, name: str) -> list[str]:
        refused = self.served.refused if self._ready else self._scanned.refused
        return [reason for key, reason in refused.items() if key.name == name]

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
        reasons = {key: self._reasons[model.id] for key, model in wanted.models.items() if model.id in self._reasons}
        self.served = wanted.serving(models, reasons)

    @staticmethod
    def _ids(catalogue: Catalogue) -> set[str]:
        return {model.id for model in catalogue.models.values()}
