"""From how sure a cascade's members were, and when they were right, to when their answers are given."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_TRIED = 4096
"""Ways to share what is allowed among the members; where there are more, some are left out."""
TAIL = 10
"""So many of the surest wrong answers tell how much surer others may be."""


class Asked(NamedTuple):
    """What members say to M images, in the order in which they are asked."""

    certainties: Sequence[NDArray[np.float64]]
    """float64[M] of each, but for the last, whose answer is always given"""
    right: Sequence[NDArray[np.bool_]]
    """bool[M] of each: it has the class that is wanted"""
    costs: Sequence[float]
    """of each, for an image"""


class Passed(NamedTuple):
    """What becomes of images by some thresholds."""

    answered: NDArray[np.intp]
    """intp[M]: which member's answer is given"""
    right: NDArray[np.bool_]
    """bool[M]: it has the class that is wanted"""
    cost: float
    """for an image"""


def pass_on(asked: Asked, thresholds: Sequence[float]) -> Passed:
    """Send images down: a member answers where it is as sure as its threshold, or the last."""
    last = len(asked.right) - 1
    answered = np.full(len(asked.right[0]), last, np.intp)
    for member in reversed(range(last)):
        answered[asked.certainties[member] >= thresholds[member]] = member
    reached = [float((answered >= member).mean()) for member in range(last + 1)]
    cost = sum(share * each for share, each in zip(reached, asked.costs, strict=True))
    return Passed(answered, np.stack(asked.right)[answered, np.arange(len(answered))], cost)


def cheapest(asked: Asked, allowed: float) -> list[float] | None:
    """Find the smallest thresholds by which no more than the share `allowed` of the images is answered wrongly.

    These images are a sample. A threshold that just holds on them fails on every second other sample: so as many fewer
    wrong answers are aimed at as would be a standard deviation, and where none is allowed, the threshold is as far
    beyond the surest wrong answer as the others tell that more may come.

    Returns:
        One for each member but the last; -inf: it always answers. None: there are none that hold.
    """
    images, others = len(asked.right[0]), len(asked.certainties)
    most = max(wrong for wrong in range(images + 1) if wrong + math.sqrt(wrong) <= allowed * images + 1e-9)
    levels = max(2, int(MOST_TRIED ** (1 / others)))
    best: tuple[float, list[float]] | None = None

    def descend(member: int, left: int, active: NDArray[np.bool_], thresholds: list[float]) -> None:
        nonlocal best
        wrong = active & ~asked.right[member]
        if member == others:
            cost = pass_on(asked, thresholds).cost
            if wrong.sum() <= left and (best is None or cost < best[0]):
                best = cost, thresholds
            return
        certainty = asked.certainties[member]
        budgets = np.unique(np.linspace(0, min(left, int(wrong.sum())), levels).round().astype(int))
        for budget in budgets.tolist():
            threshold = _threshold(certainty, active, wrong, budget, allowed / others)
            descend(member + 1, left - budget, active & (certainty < threshold), [*thresholds, threshold])

    descend(0, most, np.ones(images, np.bool_), [])
    return best and best[1]


def _threshold(
    certainty: NDArray[np.float64], active: NDArray[np.bool_], wrong: NDArray[np.bool_], budget: int, allowed: float
) -> float:
    """The smallest by which so many of the `wrong` answers are given, of those to the images that are `active`."""
    surest = np.sort(certainty[wrong])[::-1]
    if budget == 0:
        return _beyond(certainty, active, wrong, allowed)
    if budget >= len(surest):
        return -math.inf
    return _above(surest[budget], certainty[active])


def _beyond(
    certainty: NDArray[np.float64], active: NDArray[np.bool_], wrong: NDArray[np.bool_], allowed: float
) -> float:
    """A threshold above all wrong answers, and as far above them as more may come.

    By their rank among all images, which is alike for every kind of certainty, the surest wrong answers are taken to
    become fewer exponentially; where there are hardly any, as if there were one more, where nobody is sure.
    """
    ranked = np.sort(certainty[active])
    count = len(ranked)
    if not count:
        return -math.inf
    ranks = np.searchsorted(ranked, certainty[wrong], "right") / count
    tail = np.sort(np.append(ranks, 0.0))[::-1][:TAIL]
    mean = max(float((tail - tail[-1]).sum()) / max(1, len(tail) - 1), 1 / count)
    expected = len(tail) / (allowed * len(certainty))  # times as many as are allowed lie in the tail
    rank = max(tail[-1] + mean * max(0.0, math.log(expected)), tail[0])
    at = math.ceil(rank * count)
    return math.inf if at >= count else _above(ranked[max(at - 1, 0)], ranked)


def _above(certainty: float, others: NDArray[np.float64]) -> float:
    """Between a certainty and the next larger one, so that rounding does not decide."""
    larger = others[others > certainty]
    return float((certainty + larger.min()) / 2) if len(larger) else math.inf
