"""Coordinate descent over a few candidates, for noisy measurements of any kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Candidate = dict[str, str]
"""A value for each name; a name that is missing stands for the default."""
Measure = Callable[[Candidate], float]
"""Higher is better; 0 or less: unusable."""

REPEATS = 3
MARGIN = 0.03
"""Share by which a challenger must be better: less is noise, and fewer changes are easier to understand."""
HOPELESS = 0.75
"""Share of the best so far below which a candidate is not measured again."""
MAX_PASSES = 2


@dataclass(frozen=True, slots=True)
class Descent:
    """A search and its settings."""

    measure: Measure
    has_time: Callable[[], bool] = lambda: True
    """No measurement starts once this is false."""
    repeats: int = REPEATS

    def best(self, axes: Mapping[str, Sequence[str]]) -> Candidate:
        """Improve one name after the other, from the defaults, until a whole pass changes nothing."""
        best: Candidate = {}
        for _ in range(MAX_PASSES):
            before = best
            for name, values in axes.items():
                others = [best | {name: value} for value in values if value != best.get(name)]
                best = self._duel(best, others)
            if best == before:
                break
        return best

    def _duel(self, incumbent: Candidate, others: Sequence[Candidate]) -> Candidate:
        """The best of them; they are measured in turns, so that a slowing machine slows all of them."""
        scores: list[list[float]] = [[] for _ in (incumbent, *others)]
        going = list(enumerate([incumbent, *others]))
        for _ in range(self.repeats):
            for at, candidate in going:
                if not self.has_time():
                    return incumbent  # an unfinished comparison does not count
                scores[at].append(self.measure(candidate))
            most = max(median(scores[at]) for at, _ in going)
            going = [(at, one) for at, one in going if at == 0 or median(scores[at]) > HOPELESS * most]
        at, best = max(going, key=lambda one: median(scores[one[0]]))
        return best if at and median(scores[at]) > median(scores[0]) * (1 + MARGIN) else incumbent
