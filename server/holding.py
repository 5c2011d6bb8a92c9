"""Which models one engine has, is loading and could not load: a state machine without any I/O.

Models are named by their ids. A model refused for now is loaded again after a wait that doubles with each attempt.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.refusals import Cause, Refusal, delay_s

MAX_CRASHES = 2
"""Refuse a model after this many engines crashed loading it."""


@dataclass(slots=True)
class _Refused:
    """A model that the engine could not load."""

    refusal: Refusal
    attempts: int  # in a row
    retry_s: float  # when to load it again


class Holding:
    """The models of one engine, and of its predecessors in the same place."""

    def __init__(self) -> None:
        self.up = False
        """Whether the engine is ready."""
        self.loaded: set[str] = set()
        """Models that it has, or that its predecessor had."""
        self.loading: set[str] = set()
        self.hanging: set[str] = set()
        """Models that it has been loading for so long that nobody waits for them."""
        self.crashes: Counter[str] = Counter()
        """How many engines died while they loaded each model."""
        self._started: set[str] = set()  # models that the newest engine was started with
        self._loading_since_s: dict[str, float] = {}  # since `give_up_overdue` first saw a running engine load each
        self._refused: dict[str, _Refused] = {}
        self._again: set[str] = set()  # refused models that are to be loaded all the same

    def start(self, model_ids: Iterable[str]) -> None:
        """Note that a new engine loads these models before it is ready."""
        self._started = set(model_ids)
        self.loading = self._started - self.loaded

    def ready(self, refused: Mapping[str, Refusal], now_s: float) -> None:
        """Note that the new engine has the models it was started with, except those it refused."""
        self.up = True
        self.loaded = self._started - refused.keys()
        self.loading.clear()
        for model_id in self.loaded:
            self._accept(model_id)
        for model_id, refusal in refused.items():
            self.refuse(model_id, refusal, now_s)

    def lost(self) -> set[str]:
        """Note that the engine died; returns the models that it was loading."""
        self.up = False
        lost, self.loading = self.loading, set()
        self.hanging.clear()
        self._loading_since_s.clear()
        self.crashes.update(lost)
        return lost

    def load(self, model_id: str) -> None:
        """Note that the engine was told to load a model."""
        self.loading.add(model_id)

    def heard(self, model_id: str, refusal: Refusal | None, now_s: float) -> None:
        """Note that the engine has loaded a model, or refused it."""
        self.loading.discard(model_id)
        self.hanging.discard(model_id)
        self._loading_since_s.pop(model_id, None)
        if refusal is None:
            self.loaded.add(model_id)
            self._accept(model_id)
        else:
            self.refuse(model_id, refusal, now_s)

    def give_up_overdue(self, patience_s: float, now_s: float) -> bool:
        """Refuse for now the models that a running engine has been loading for `patience_s`; whether there are any.

        The load may hang for ever, so the engine is not told to load them again while it lasts.
        """
        loading = sorted(self.loading) if self.up else []
        overdue = [each for each in loading if now_s - self._loading_since_s.setdefault(each, now_s) >= patience_s]
        for model_id in overdue:
            del self._loading_since_s[model_id]
            self.loading.discard(model_id)
            self.hanging.add(model_id)
            self.refuse(model_id, Refusal(Cause.NOT_NOW, f"it was not loaded within {patience_s:.0f} s"), now_s)
        return bool(overdue)

    def refuse(self, model_id: str, refusal: Refusal, now_s: float) -> None:
        """Note that the engine cannot load the model: never, or not for a while."""
        before = self._refused.get(model_id)
        attempts = before.attempts + 1 if before else 1
        retry_s = now_s + delay_s(attempts) if refusal.is_tried_again else math.inf
        self._refused[model_id] = _Refused(refusal, attempts, retry_s)
        self._again.discard(model_id)

    def try_again(self, model_id: str) -> None:
        """Forget its failures; until the engine has tried the model again, the old reason stands."""
        self.crashes.pop(model_id, None)
        if refused := self._refused.get(model_id):
            refused.attempts = 0
            self._again.add(model_id)

    def retry(self, now_s: float) -> bool:
        """Whether a refused model is due for another attempt."""
        due = {model_id for model_id, refused in self._refused.items() if now_s >= refused.retry_s} - self._again
        self._again |= due
        return bool(due)

    def lacks(self, model_id: str) -> bool:
        """Whether the engine does not have this model, and nothing speaks against loading it."""
        return not (model_id in self.loaded or model_id in self.hanging or self.is_refused(model_id))

    def is_refused(self, model_id: str) -> bool:
        """Whether the engine could not load this model, and it is not time to try again."""
        return model_id in self._refused and model_id not in self._again

    def refusal(self, model_id: str) -> Refusal | None:
        """Why the engine could not load this model the last time."""
        refused = self._refused.get(model_id)
        return refused.refusal if refused else None

    def _accept(self, model_id: str) -> None:
        self._refused.pop(model_id, None)
        self._again.discard(model_id)
        self.crashes.pop(model_id, None)
