"""What one engine has of the models, loads, and could not load: a state machine without any I/O.

Models are named by their ids. What is refused for now is loaded again, after a wait that doubles with each attempt.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.refusals import Refusal, delay_s

MAX_CRASHES = 2
"""Refuse a model after this many engines crashed loading it."""


@dataclass(slots=True)
class _Refused:
    """A model that the engine could not load, so many times in a row."""

    refusal: Refusal
    attempts: int
    retry_s: float
    """When to load it again."""


class Holding:
    """Of one engine, and of those before it that had its place."""

    def __init__(self) -> None:
        self.up = False
        """It is ready."""
        self.loaded: set[str] = set()
        """What it has, or the one before it had."""
        self.loading: set[str] = set()
        self.hanging: set[str] = set()
        """What it has been loading for so long that nobody waits for it."""
        self.crashes: Counter[str] = Counter()
        """How many died while they loaded something."""
        self._started: set[str] = set()  # what the newest was started with
        self._refused: dict[str, _Refused] = {}
        self._again: set[str] = set()  # what was refused and is to be loaded all the same

    def start(self, model_ids: Iterable[str]) -> None:
        """A new one loads these before it is ready."""
        self._started = set(model_ids)
        self.loading = self._started - self.loaded

    def ready(self, refused: Mapping[str, Refusal], now_s: float) -> None:
        """The new one has what it was started with, but for what it refused."""
        self.up = True
        self.loaded = self._started - refused.keys()
        self.loading.clear()
        for model_id in self.loaded:
            self._accept(model_id)
        for model_id, refusal in refused.items():
            self.refuse(model_id, refusal, now_s)

    def lost(self) -> set[str]:
        """It died; returns what it was loading."""
        self.up = False
        lost, self.loading = self.loading, set()
        self.hanging.clear()
        self.crashes.update(lost)
        return lost

    def load(self, model_id: str) -> None:
        """It was told to load a model."""
        self.loading.add(model_id)

    def heard(self, model_id: str, refusal: Refusal | None, now_s: float) -> None:
        """It has loaded a model, or refused it."""
        self.loading.discard(model_id)
        self.hanging.discard(model_id)
        if refusal is None:
            self.loaded.add(model_id)
            self._accept(model_id)
        else:
            self.refuse(model_id, refusal, now_s)

    def give_up(self, model_id: str, refusal: Refusal, now_s: float) -> None:
        """It has been loading a model for too long, and may for ever; it is not told to load it again meanwhile."""
        self.loading.discard(model_id)
        self.hanging.add(model_id)
        self.refuse(model_id, refusal, now_s)

    def refuse(self, model_id: str, refusal: Refusal, now_s: float) -> None:
        """It cannot have it: never, or not for a while."""
        before = self._refused.get(model_id)
        attempts = before.attempts + 1 if before else 1
        retry_s = now_s + delay_s(attempts) if refusal.is_tried_again else math.inf
        self._refused[model_id] = _Refused(refusal, attempts, retry_s)
        self._again.discard(model_id)

    def try_again(self, model_id: str) -> None:
        """As if it had never been tried; until that has been done, it is refused for the old reason."""
        self.crashes.pop(model_id, None)
        if refused := self._refused.get(model_id):
            refused.attempts = 0
            self._again.add(model_id)

    def retry(self, now_s: float) -> bool:
        """Whether it is time to load something again."""
        due = {model_id for model_id, refused in self._refused.items() if now_s >= refused.retry_s} - self._again
        self._again |= due
        return bool(due)

    def lacks(self, model_id: str) -> bool:
        """It is to load this, and has not, or not yet."""
        return model_id not in self.loaded and not self.is_refused(model_id)

    def may_load(self, model_id: str) -> bool:
        """It lacks this, and is not still at it since it was last told to load it."""
        return self.lacks(model_id) and model_id not in self.hanging

    def is_refused(self, model_id: str) -> bool:
        """It could not load it, and it is not time to try again."""
        return model_id in self._refused and model_id not in self._again

    def refusal(self, model_id: str) -> Refusal | None:
        """Why it could not load it the last time."""
        refused = self._refused.get(model_id)
        return refused.refusal if refused else None

    def _accept(self, model_id: str) -> None:
        self._refused.pop(model_id, None)
        self._again.discard(model_id)
        self.crashes.pop(model_id, None)
