"""Chooses the engine an HTTP worker submits an image to: the one it expects to answer first.

Pure computation: no clock, no sockets. All workers of a server record their work under way in one table in shared
memory, each in its own row, so no lock is needed.
"""

from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray

SMOOTHING = 0.2
"""Weight of the newest batch in the learned times (exponential moving average)."""
SURPRISE = 2.0
"""Cap on a measurement, as a multiple of the learned value: one batch that hung must not distort it."""
FORGET = 0.999
"""Decay of an engine's slowness each time another is preferred, so that it is eventually tried again."""
UNKNOWN_S = 1e-3
"""Assumed time per image before anything is learned; engines then compare by the number of images they have."""


class Engines:
    """One HTTP worker's knowledge of the engines, by their numbers. With a single engine it learns nothing."""

    def __init__(self, work_s: NDArray[np.float64], row: int) -> None:
        """Share a table with the other workers.

        Args:
            work_s: float64[workers, engines], seconds of inference that each worker has under way at each engine.
            row: this worker's own; it is cleared of what the worker's predecessor left.
        """
        self._work_s = work_s
        self._own = work_s[row]
        self._own[:] = 0
        count = work_s.shape[1]
        self._several = count > 1
        self._up = [False] * count
        self._recovering = [True] * count  # whether requests wait for it
        self._models: list[Set[str] | None] = [None] * count  # ids; None: not known until it is up
        self._usable: Set[str] | None = None
        self._having: dict[str, list[int]] = {}  # by model: engines that are up; cleared when any changes
        self._under_way = [0] * count
        self._chosen = [0] * count  # when each was last chosen, counted in images
        self._images = 0
        self._batch_s: dict[str, dict[int, float]] = {}  # by model and size
        self._newest_s: dict[str, float] = {}  # by model: a recent batch, of any size
        self._image_s: dict[str, float] = {}  # by model: an image's share of its batch
        self._slowness = [1.0] * count  # relative to the mean of all engines

    @property
    def any_up(self) -> bool:
        """Whether some engine is up."""
        return any(self._up)

    @property
    def expected(self) -> bool:
        """Whether some engine is up or recovering."""
        return any(self._up) or any(self._recovering)

    @property
    def away(self) -> list[int]:
        """The engines that are down."""
        return [number for number, up in enumerate(self._up) if not up]

    def up(self, engine: int, models: Set[str]) -> None:
        """Mark an engine as up, with these models."""
        self._up[engine] = self._recovering[engine] = True
        self._models[engine] = models
        self._having.clear()

    def down(self, engine: int, *, recovering: bool) -> None:
        """Mark an engine as down, its work lost; requests wait for it if it is `recovering`."""
        self._up[engine], self._recovering[engine] = False, recovering
        self._own[engine] = self._under_way[engine] = 0
        self._having.clear()

    def hold(self, models: Sequence[Set[str]], usable: Set[str] | None = None) -> None:
        """Update the models that each engine has, or had when it was last up; None: all of them are `usable`.

        A model that is not usable is being unloaded: only requests that already use it still submit to it.
        """
        for engine, held in enumerate(models):
            if self._models[engine] is not None:
                self._models[engine] = held
        self._usable = usable
        self._having.clear()

    def has(self, model: str) -> bool:
        """Whether an engine that is up has this model, and it is usable."""
        return (self._usable is None or model in self._usable) and bool(self._with(model))

    def expects(self, model: str) -> bool:
        """Whether an engine that is up has this model, or one that is recovering may have it."""
        return bool(self._with(model)) or any(
            (up or recovering) and (held is None or model in held)
            for up, recovering, held in zip(self._up, self._recovering, self._models, strict=True)
        )

    def choose(self, model: str) -> int | None:
        """The engine to submit an image to; None: no engine that is up has the model."""
        found = self._with(model)
        if len(found) < 2:
            return found[0] if found else None
        work_s = self._work_s.sum(0).tolist()
        batch_s = self._newest_s.get(model, UNKNOWN_S)
        slowness = {engine: round(4 * self._slowness[engine]) / 4 for engine in found}  # less is noise
        answer_s = {engine: slowness[engine] * (work_s[engine] + batch_s) for engine in found}
        # Differences below one batch are noise: they depend on how soon the running batch ends. Among those engines, an
        # idle one starts at once; otherwise the one chosen longest ago is the likeliest to start its next batch.
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
        """Record that an image is submitted; returns its seconds of work, to be passed to `end`."""
        if not self._several:
            return 0.0
        seconds = self._image_s.get(model, UNKNOWN_S)
        self._under_way[engine] += 1
        self._own[engine] += seconds
        return seconds

    def end(self, engine: int, work_s: float) -> None:
        """Record that the engine has released an image."""
        if not self._several:
            return
        self._under_way[engine] -= 1
        # Floating-point sums drift: an idle engine is reset to exactly 0.
        self._own[engine] = self._own[engine] - work_s if self._under_way[engine] else 0.0

    def learn(self, engine: int, model: str, size: int, seconds: float) -> None:
        """Learn from an image whose batch of `size` took `seconds`; called once per image of the batch."""
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
