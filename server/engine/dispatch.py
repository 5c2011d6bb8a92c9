"""Which engine an HTTP worker submits an image to: the one that will answer first, as far as it has learned.

Numbers in, a number out: no clock, no sockets. All workers of a server write what they have under way into one table in
shared memory, each into its own row, so that no lock is needed.
"""

from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray

SMOOTHING = 0.2
"""Weight of the newest batch in what is learned (exponential moving average)."""
SURPRISE = 2.0
"""No measurement counts for more than so many times what is known: one batch that hung for a moment is no rule."""
FORGET = 0.999
"""What is left of an engine's slowness each time that another is preferred: only trying can tell if it still is."""
UNKNOWN_S = 1e-3
"""Taken for the time of an image of which nothing is known: so engines are told apart by how many they have."""


class Engines:
    """What one HTTP worker knows of the engines, by their numbers. Of a single one it learns nothing."""

    def __init__(self, work_s: NDArray[np.float64], row: int) -> None:
        """Share a table with the other workers.

        Args:
            work_s: float64[workers, engines], seconds of inference that each worker has under way at each engine.
            row: this worker's own; what its predecessor left in it is gone.
        """
        self._work_s = work_s
        self._own = work_s[row]
        self._own[:] = 0
        count = work_s.shape[1]
        self._several = count > 1
        self._up = [False] * count
        self._recovering = [True] * count  # requests wait for it
        self._models: list[Set[str] | None] = [None] * count  # ids; None: not known before it is up
        self._usable: Set[str] | None = None
        self._having: dict[str, list[int]] = {}  # by the model's id, engines that are there; forgotten when any changes
        self._under_way = [0] * count
        self._chosen = [0] * count  # when each was the last time, counted in images
        self._images = 0
        self._batch_s: dict[str, dict[int, float]] = {}  # by model and size
        self._newest_s: dict[str, float] = {}  # by model: a batch, of whatever size they are lately
        self._image_s: dict[str, float] = {}  # an image's share of it
        self._slowness = [1.0] * count  # beside what a batch takes on all of them

    @property
    def any_up(self) -> bool:
        """Some engine is there."""
        return any(self._up)

    @property
    def expected(self) -> bool:
        """Some engine is there, or will be soon."""
        return any(self._up) or any(self._recovering)

    @property
    def away(self) -> list[int]:
        """The engines that are not there."""
        return [number for number, up in enumerate(self._up) if not up]

    def up(self, engine: int, models: Set[str]) -> None:
        """It can be submitted to, and has these models."""
        self._up[engine] = self._recovering[engine] = True
        self._models[engine] = models
        self._having.clear()

    def down(self, engine: int, *, recovering: bool) -> None:
        """It is gone, with all that it had; requests wait for it where it is `recovering`."""
        self._up[engine], self._recovering[engine] = False, recovering
        self._own[engine] = self._under_way[engine] = 0
        self._having.clear()

    def hold(self, models: Sequence[Set[str]], usable: Set[str] | None = None) -> None:
        """Each engine has these models by now, or had them when it was last there; None: all of them are `usable`.

        What is not goes: it is submitted only for who has begun to use it.
        """
        for engine, held in enumerate(models):
            if self._models[engine] is not None:
                self._models[engine] = held
        self._usable = usable
        self._having.clear()

    def has(self, model: str) -> bool:
        """An engine that is there has this model, and it is usable."""
        return (self._usable is None or model in self._usable) and bool(self._with(model))

    def expects(self, model: str) -> bool:
        """The same, or one that will be there soon may have it."""
        return bool(self._with(model)) or any(
            (up or recovering) and (held is None or model in held)
            for up, recovering, held in zip(self._up, self._recovering, self._models, strict=True)
        )

    def choose(self, model: str) -> int | None:
        """The engine to submit an image to; None: none that is there has the model."""
        found = self._with(model)
        if len(found) < 2:
            return found[0] if found else None
        work_s = self._work_s.sum(0).tolist()
        batch_s = self._newest_s.get(model, UNKNOWN_S)
        slowness = {engine: round(4 * self._slowness[engine]) / 4 for engine in found}  # a quarter more is no more
        answer_s = {engine: slowness[engine] * (work_s[engine] + batch_s) for engine in found}
        # Less than a batch more says nothing: it depends on how soon the batch ends that runs. Of those, one that does
        # nothing starts at once, and else the one that was chosen first is the likeliest to come to its next batch.
        near_s = min(answer_s.values()) + batch_s
        best = min(
            (engine for engine in found if answer_s[engine] < near_s),
            key=lambda engine: (work_s[engine] > 0, slowness[engine], self._chosen[engine]),
        )
        self._images += 1
        self._chosen[best] = self._images
        for engine in found:
            if engine != best:
                self._slowness[engine] = 1 + FORGET * (self._slowness[engine] - 1)
        return best

    def begin(self, engine: int, model: str) -> float:
        """An image is submitted; returns what `end` is to be told, seconds of work."""
        if not self._several:
            return 0.0
        seconds = self._image_s.get(model, UNKNOWN_S)
        self._under_way[engine] += 1
        self._own[engine] += seconds
        return seconds

    def end(self, engine: int, work_s: float) -> None:
        """The engine has let go of an image."""
        if not self._several:
            return
        self._under_way[engine] -= 1
        # Sums of floating-point numbers drift: nothing is nothing.
        self._own[engine] = self._own[engine] - work_s if self._under_way[engine] else 0.0

    def learn(self, engine: int, model: str, size: int, seconds: float) -> None:
        """An image was in a batch of `size`, which took so long; each of its images tells so."""
        if not self._several:
            return
        weight = SMOOTHING / size
        self._image_s[model] = _mean(self._image_s.get(model, seconds / size), seconds / size, weight)
        self._newest_s[model] = _mean(self._newest_s.get(model, seconds), seconds, weight)
        batches = self._batch_s.setdefault(model, {})
        known_s = batches.get(size, seconds)
        self._slowness[engine] = _mean(self._slowness[engine], seconds / known_s, weight) if known_s else 1.0
        batches[size] = _mean(known_s, seconds, weight)

    def _with(self, model: str) -> list[int]:
        found = self._having.get(model)
        if found is None:
            found = self._having[model] = [
                engine
                for engine, (up, held) in enumerate(zip(self._up, self._models, strict=True))
                if up and held is not None and model in held
            ]
        return found


def _mean(known: float, newest: float, weight: float) -> float:
    return known + weight * (min(newest, SURPRISE * known) - known)
