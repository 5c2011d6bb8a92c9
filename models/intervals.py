"""What so many trials prove about a share: its confidence interval."""

import math
from collections.abc import Callable
from typing import NamedTuple

LEVEL = 0.95
_STEPS = 60
"""Bisections: enough for the last bit of what is found between 0 and 1."""
_NEGLIGIBLE = 1e-18
"""Terms of a sum that are not more than this share of it, each less than the one before it, do not change it."""


class Interval(NamedTuple):
    """Shares, 0 to 1, between which the true one lies, the level's part of all times or more."""

    low: float
    high: float


def clopper_pearson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """The exact two-sided interval of a binomial share (Clopper and Pearson, Biometrika 26, 1934).

    It never covers less than `level`, also near 0 and 1, where a normal approximation covers next to nothing.

    Args:
        successes: 0 to `trials`.
        trials: 0 or more; of none nothing is known.
        level: of confidence, above 0 and below 1; each side may miss half of what is left.

    Raises:
        ValueError: there are more successes than trials, or fewer than none.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    tail = (1 - level) / 2
    # At the least share so many successes or more are just as likely as that; at the largest, so many or fewer.
    low = _root(lambda share: tail - _at_most(trials - successes, trials, 1 - share)) if successes else 0.0
    high = _root(lambda share: _at_most(successes, trials, share) - tail) if successes < trials else 1.0
    return Interval(low, high)


def trials_to_prove(share: float, failures: int = 0, level: float = LEVEL) -> int:
    """How many trials prove, with so many failures among them, that the true share is at least this.

    Args:
        share: above 0 and below 1.
        failures: that are to be expected.
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
    """Where a function of 0 to 1 that is falling, from above 0 to below it, is 0."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _at_most(successes: int, trials: int, share: float) -> float:
    """How likely so many successes are, or fewer; the sum is over the side where terms fall, as far as they count."""
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
