"""What all engines together have of the models, and which engine may try to load one: decided without any I/O.

Models are named by their ids. A model that engines crashed on must not take all of them down: one engine at a time
tries it, and only while others serve.
"""

from collections.abc import Mapping, Sequence

from server.holding import MAX_CRASHES, Holding
from server.refusals import Cause, Refusal
from server.repository import Model


class Holdings:
    """One `Holding` for each engine, by the engine's number."""

    def __init__(self, engines: int) -> None:
        self.engines: Sequence[Holding] = [Holding() for _ in range(engines)]
        self.proven: set[str] = set()
        """Models that some engine has loaded at least once."""
        self.ready = False
        """Whether any engine has been ready."""

    @property
    def loaded(self) -> frozenset[str]:
        """Models that some engine has, or had when it was last up."""
        return frozenset().union(*(engine.loaded for engine in self.engines))

    @property
    def loading(self) -> frozenset[str]:
        """Models that some engine is loading."""
        return frozenset().union(*(engine.loading for engine in self.engines))

    def homes(self, model: Model) -> Sequence[Holding]:
        """The engines that are to have the model; none if its serving.json names a device that does not exist."""
        devices = model.settings.devices
        if devices is None:
            return self.engines
        return [self.engines[device] for device in devices] if max(devices) < len(self.engines) else []

    def has(self, model: Model) -> bool:
        """Whether an engine that is to have the model has it."""
        return any(model.id in home.loaded for home in self.homes(model))

    def awaits(self, model: Model) -> bool:
        """Whether an engine has still to load it: a running one, or any if no engine has it yet."""
        homes, there = self.homes(model), self.has(model)
        return any(home.lacks(model.id) and (home.up or not there) for home in homes)

    def may_try(self, model_id: str) -> bool:
        """Whether an engine may load the model now: an unproven one only alone, after a crash only if others are up."""
        if model_id in self.proven:
            return True
        if model_id in self.loading:
            return False
        crashed = any(engine.crashes[model_id] for engine in self.engines)
        return not crashed or len(self.engines) == 1 or sum(engine.up for engine in self.engines) > 1

    def why_not(self, model: Model) -> Refusal | None:
        """Why no engine has the model, if one has refused it."""
        homes = self.homes(model)
        if not homes:
            devices = ", ".join(map(str, model.settings.devices or ()))
            last = len(self.engines) - 1
            return Refusal(Cause.NEVER, f"serving.json puts it on devices {devices}, and here they are 0 to {last}")
        if self.has(model):
            return None
        refused = [refusal for home in homes if (refusal := home.refusal(model.id))]
        return next((refusal for refusal in refused if refusal.is_tried_again), next(iter(refused), None))

    def engine_ready(self, engine: int, refused: Mapping[str, Refusal], now_s: float) -> None:
        """Note that a new engine has the models it was started with, except those it refused."""
        self.ready = True
        self.engines[engine].ready(refused, now_s)
        self.proven |= self.engines[engine].loaded

    def engine_lost(self, engine: int, now_s: float) -> None:
        """Note that an engine died, and refuse the models that too many engines crashed on.

        A model that no engine has ever loaded is refused for good: each crash takes all models of an engine down.
        """
        for model_id in self.engines[engine].lost():
            proven = model_id in self.proven
            concerned = [self.engines[engine]] if proven or not self.ready else self.engines
            crashes = sum(each.crashes[model_id] for each in concerned)
            if crashes >= MAX_CRASHES:
                died = f"{crashes} inference engines died while they loaded it"
                for each in concerned:
                    each.refuse(model_id, Refusal(Cause.NOT_NOW if proven else Cause.NEVER, died), now_s)

    def heard(self, engine: int, model_id: str, refusal: Refusal | None, now_s: float) -> None:
        """Note that a running engine has loaded a model, or refused it."""
        self.engines[engine].heard(model_id, refusal, now_s)
        if refusal is None:
            self.proven.add(model_id)

    def try_again(self, model_id: str) -> None:
        """Let every engine that refused the model try it again."""
        for engine in self.engines:
            engine.try_again(model_id)

    def retry(self, now_s: float, patience_s: float) -> bool:
        """Whether some refused model is due for another attempt, or a load has taken `patience_s` and is given up."""
        due = [engine.retry(now_s) | engine.give_up_overdue(patience_s, now_s) for engine in self.engines]
        return any(due)
