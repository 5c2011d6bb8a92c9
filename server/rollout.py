"""Which models the engines are to load and to let go, and which requests may name: a state machine without any I/O.

A model is served once every engine that is there and is to have it has loaded and warmed it, or refused it, and one
has it. What it replaces is served until then, and stays where all refuse it: a broken model takes no good one down.
Nor does it take down more than one engine: what none has ever loaded is loaded by one of them first, once the server
serves. What is refused for now is loaded again, after a wait that doubles with each attempt; what is refused for good
when its files change, or when it is asked for.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from enum import Enum, auto

from server.errors import Code, ServiceError
from server.fitting import Measured
from server.holding import MAX_CRASHES, Holding
from server.refusals import Cause, Refusal
from server.repository import Catalogue, Model, ModelKey


class Progress(Enum):
    """How far loading a model is, unless it was refused."""

    LOADING = auto()
    SERVED = auto()
    """As the repository has it."""


class Rollout:
    """What the repository holds, what was asked for, what the engines have, and what follows from it."""

    def __init__(self, scanned: Catalogue, default_model: str | None = None, engines: int = 1) -> None:
        """Begin with what a first scan found; `default_model` is the one that was asked for."""
        self._scanned = scanned
        self._default = default_model or scanned.default_model
        self._default_is_fixed = default_model is not None
        self._unloaded: set[str] = set()  # names, until they are asked for again
        self._engines = [Holding() for _ in range(engines)]
        self._proven: set[str] = set()  # ids of what some engine had loaded
        self._ready = False  # some engine was
        self.served = scanned
        """What requests may name; before the first engine is ready, all that they will try to load."""

    @property
    def held(self) -> tuple[frozenset[str], ...]:
        """Ids of the models that each engine has, or had when it was last there."""
        return tuple(frozenset(engine.loaded) for engine in self._engines)

    @property
    def usable(self) -> frozenset[str] | None:
        """Ids of the models that requests may begin with; None: all that they may name."""
        return None

    @property
    def loading(self) -> Mapping[str, float]:
        """Ids of the models that requests may name and that are being loaded, and how many seconds that takes."""
        return {}

    @property
    def states(self) -> Counter[str]:
        """How many of the models that are to be served are loaded, loading, unloaded."""
        there: Set[str] = frozenset().union(*self.held)
        loading = {model_id for engine in self._engines for model_id in engine.loading}
        return Counter(
            "loaded" if model.id in there else "loading" if model.id in loading else "unloaded"
            for model in self._wanted.models.values()
        )

    def demanded(self, worker: str, waiting: Set[str], used: Sequence[str]) -> None:
        """Requests to an HTTP worker wait for these; it has used those since it last said so, in this order."""

    def worker_ended(self, worker: str) -> None:
        """No request to this worker waits any more."""

    def measured(self, engine: int, found: Mapping[str, Measured]) -> None:
        """What an engine found of models that it has loaded, by their ids, in the order in which they were."""

    def is_up(self, engine: int) -> bool:
        """It is ready."""
        return self._engines[engine].up

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
        for model in self._needed(name):
            self._try_again(model.id)
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

    def start_engine(self, engine: int) -> list[Model]:
        """What a new engine loads before it is ready: what is served, and of the rest what cannot take others down."""
        holding = self._engines[engine]
        refused = holding.is_refused if self._ready else lambda _: False
        served = {model.id: model for model in self.served.models.values() if not refused(model.id)}
        lacking = {model.id: model for model in self._wanted.models.values() if holding.lacks(model.id)}
        if any(other.up for other in self._engines):
            lacking = {model_id: model for model_id, model in lacking.items() if model_id in self._proven}
        models = [model for model in {**served, **lacking}.values() if holding in self._homes(model)]
        holding.start(model.id for model in models)
        return models

    def engine_ready(self, engine: int, refused: Mapping[str, Refusal], now_s: float) -> None:
        """The new engine has what it was started with, but for what it refused, by id."""
        self._ready = True
        self._engines[engine].ready(refused, now_s)
        self._proven |= self._engines[engine].loaded
        self._update()

    def engine_lost(self, engine: int, now_s: float) -> None:
        """It died; the next one gets what is served, and once more what it may have died of.

        What engines die of is tried again only if one has ever loaded it: it would take all other models down with it.
        """
        for model_id in self._engines[engine].lost():
            proven = model_id in self._proven
            deaths = self._engines[engine].crashes[model_id]
            if self._ready and not proven:
                deaths = sum(each.crashes[model_id] for each in self._engines)
            if deaths >= MAX_CRASHES:
                died = f"{deaths} inference engines died while they loaded it"
                refusal = Refusal(Cause.NOT_NOW if proven else Cause.NEVER, died)
                for at, each in enumerate(self._engines):
                    if at == engine or (self._ready and not proven):
                        each.refuse(model_id, refusal, now_s)
        self._update()

    def retry(self, now_s: float) -> bool:
        """Whether it is time to load something again; then `take_missing` names it."""
        due = [engine.retry(now_s) for engine in self._engines]
        return any(due)

    def take_missing(self, engine: int) -> list[Model]:
        """What this engine, which is ready, is to load; each is named once."""
        holding = self._engines[engine]
        missing = [
            model
            for model in self._wanted.models.values()
            if holding in self._homes(model)
            and holding.lacks(model.id)
            and model.id not in holding.loading
            and (model.id in self._proven or self._may_be_tried(model.id))
        ]
        for model in missing:
            holding.load(model.id)
        return missing

    def loaded(self, engine: int, model_id: str, refusal: Refusal | None, now_s: float) -> None:
        """The running engine has loaded a model, or refused it."""
        self._engines[engine].heard(model_id, refusal, now_s)
        if refusal is None:
            self._proven.add(model_id)
        self._update()

    def take_surplus(self, engine: int) -> list[str]:
        """Ids of what the engine has and nobody may name any more, nor will soon; each is named once."""
        holding = self._engines[engine]
        surplus = holding.loaded - self._ids(self.served) - self._ids(self._wanted)
        holding.loaded -= surplus
        return list(surplus)

    def outcome(self, name: str) -> Progress | Refusal:
        """How loading a model went."""
        if any(self._is_awaited(model) for model in self._needed(name)):
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

    def _homes(self, model: Model) -> list[Holding]:
        """The engines that are to have it; none where it was given a device that is not there."""
        devices = model.settings.devices
        if devices is None:
            return self._engines
        return [self._engines[device] for device in devices] if max(devices) < len(self._engines) else []

    def _is_there(self, model: Model) -> bool:
        return any(model.id in home.loaded for home in self._homes(model))

    def _is_awaited(self, model: Model) -> bool:
        """Some engine is still to load it: one that is there, or where none has it, any."""
        homes, there = self._homes(model), self._is_there(model)
        return any(home.lacks(model.id) and (home.up or not there) for home in homes)

    def _may_be_tried(self, model_id: str) -> bool:
        """What no engine has ever loaded is loaded by one at a time, and after a crash only while others are there."""
        if any(model_id in engine.loading for engine in self._engines):
            return False
        crashed = any(engine.crashes[model_id] for engine in self._engines)
        return not crashed or len(self._engines) == 1 or sum(engine.up for engine in self._engines) > 1

    def _refusal(self, model: Model) -> Refusal | None:
        """Why no engine has it, where one has refused it."""
        homes = self._homes(model)
        if not homes:
            devices = ", ".join(map(str, model.settings.devices or ()))
            last = len(self._engines) - 1
            return Refusal(Cause.NEVER, f"serving.json puts it on devices {devices}, and here they are 0 to {last}")
        if self._is_there(model):
            return None
        refused = [refusal for home in homes if (refusal := home.refusal(model.id))]
        return next((refusal for refusal in refused if refusal.is_tried_again), next(iter(refused), None))

    def _needed(self, name: str) -> list[Model]:
        """What the engines must have for a model or an ensemble to be served."""
        wanted = self._wanted
        return [model for entry in wanted.versions.get(name, {}).values() for model in wanted.members(entry)]

    def _try_again(self, model_id: str) -> None:
        for engine in self._engines:
            engine.try_again(model_id)

    def _refusals(self, name: str) -> list[Refusal]:
        refused = self.served.refused if self._ready else self._scanned.refused
        return [refusal for key, refusal in refused.items() if key.name == name]

    def _update(self) -> None:
        if not self._ready:
            return  # requests may name what the first engine tries to load
        wanted = self._wanted
        ids = self._ids(self.served)
        there = {
            key
            for key, model in wanted.models.items()
            if self._is_there(model) and (model.id in ids or not self._is_awaited(model))
        }
        awaited = {key.name for key in wanted.models} - {key.name for key in there}
        models: dict[ModelKey, Model] = {}
        for key in {**wanted.models, **self.served.models}:
            new, old = wanted.models.get(key), self.served.models.get(key)
            broken = key.name not in self._unloaded and key in wanted.refused
            if new and key in there:
                models[key] = new
            elif old and self._is_there(old) and (new or broken or key.name in awaited):
                models[key] = old
        found = ((key, self._refusal(model)) for key, model in wanted.models.items())
        self.served = wanted.serving(models, {key: refusal for key, refusal in found if refusal})

    @staticmethod
    def _ids(catalogue: Catalogue) -> set[str]:
        return {model.id for model in catalogue.models.values()}
