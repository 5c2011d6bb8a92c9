"""Confidence intervals of a share, from a number of trials."""

import math
from collections.abc import Callable
from typing import NamedTuple

LEVEL = 0.95
_STEPS = 60
"""Bisection steps: enough to find a float between 0 and 1 to its last bit."""
_NEGLIGIBLE = 1e-18
"""Falling terms below this share of a sum no longer change it."""


class Interval(NamedTuple):
    """Shares, 0 to 1, that enclose the true one with at least the confidence level's probability."""

    low: float
    high: float


def clopper_pearson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """The exact two-sided interval of a binomial share (Clopper and Pearson, Biometrika 26, 1934).

    It never covers less than `level`, even near 0 and 1, where a normal approximation covers next to nothing.

    Args:
        successes: 0 to `trials`.
        trials: 0 or more; without any, the interval is 0 to 1.
        level: of confidence, above 0 and below 1; each side misses with at most half of the rest.

    Raises:
        ValueError: `successes` is negative or larger than `trials`.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    tail = (1 - level) / 2
    # At the lower bound, this many successes or more have probability `tail`; at the upper bound, this many or fewer.
    low = _root(lambda share: tail - _at_most(trials - successes, trials, 1 - share)) if successes else 0.0
    high = _root(lambda share: _at_most(successes, trials, share) - tail) if successes < trials else 1.0
    return Interval(low, high)


def trials_to_prove(share: float, failures: int = 0, level: float = LEVEL) -> int:
    """How many trials, `failures` of them failed, prove that the true share is at least `share`.

    Args:
        share: above 0 and below 1.
        failures: expected number of failures.
        level: as for `clopper_pearson`.
    """
    least, enough = failures, failures + 1
    while clopper_pearson(enough - failures, enough, level).low < share:
        least, enough = enough, 2 * enough
    while enough - least > 1:
        middle = (least + enough) // 2
        if clopper_pearson(middle - failures, middle, level).low < share:
            least = middle
        else:
            enough = middle
    return enough


def _root(falling: Callable[[float], float]) -> float:
    """Find the zero of a function that falls from above 0 to below 0 between 0 and 1."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _at_most(successes: int, trials: int, share: float) -> float:
    """Probability of at most this many successes, summed over the tail whose terms fall until they are negligible."""
    if share in (0.0, 1.0):
        return float(share == 0.0 or successes == trials)
    if successes > trials * share:
        return 1 - _at_most(trials - successes - 1, trials, 1 - share)
    log_odds = math.log(share) - math.log1p(-share)
    ways = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    term = math.exp(ways + successes * log_odds + trials * math.log1p(-share))
    total, odds = 0.0, math.exp(-log_odds)
    for count in range(successes, -1, -1):
        total += term
        term *= count / (trials - count + 1) * odds
        if term <= total * _NEGLIGIBLE:
            break
    return min(1.0, total)
