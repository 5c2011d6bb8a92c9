"""Finds the thresholds of a cascade's members, from how sure they were and when they were right."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_TRIED = 4096
"""Most ways that are tried to divide the allowed wrong answers among the members."""
TAIL = 10
"""Number of surest wrong answers from which to estimate how sure others may be."""


class Asked(NamedTuple):
    """The members' answers to M images, in the order in which the members are asked."""

    certainties: Sequence[NDArray[np.float64]]
    """float64[M] of each member except the last, whose answer is always final."""
    right: Sequence[NDArray[np.bool_]]
    """bool[M] of each member: its answer is the wanted class."""
    costs: Sequence[float]
    """Cost of each member per image."""


class Passed(NamedTuple):
    """What happens to images under some thresholds."""

    answered: NDArray[np.intp]
    """intp[M]: the member whose answer is final."""
    right: NDArray[np.bool_]
    """bool[M]: this answer is the wanted class."""
    cost: float
    """Mean per image."""


def pass_on(asked: Asked, thresholds: Sequence[float]) -> Passed:
    """Pass images down the cascade: the first member as sure as its threshold answers, or else the last member."""
    last = len(asked.right) - 1
    answered = np.full(len(asked.right[0]), last, np.intp)
    for member in reversed(range(last)):
        answered[asked.certainties[member] >= thresholds[member]] = member
    reached = [float((answered >= member).mean()) for member in range(last + 1)]
    cost = sum(share * each for share, each in zip(reached, asked.costs, strict=True))
    return Passed(answered, np.stack(asked.right)[answered, np.arange(len(answered))], cost)


def cheapest(asked: Asked, allowed: float) -> list[float] | None:
    """Find the cheapest thresholds with which at most the share `allowed` of the images is answered wrongly.

    These images are a sample, and a threshold that just holds on them fails on every second other sample. So the search
    aims at fewer wrong answers, by one standard deviation. If a member may give none, its threshold lies above its
    surest wrong answer, by a margin that the other wrong answers suggest.

    Returns:
        One threshold for each member except the last; -inf: it always answers. None: no thresholds hold.
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
    """Return the smallest threshold with which a member gives only `budget` `wrong` answers to the `active` images."""
    surest = np.sort(certainty[wrong])[::-1]
    if budget == 0:
        return _beyond(certainty, active, wrong, allowed)
    if budget >= len(surest):
        return -math.inf
    return _above(surest[budget], certainty[active])


def _beyond(
    certainty: NDArray[np.float64], active: NDArray[np.bool_], wrong: NDArray[np.bool_], allowed: float
) -> float:
    """Return a threshold above all wrong answers, with a margin for surer ones on other images.

    Wrong answers are assumed to become exponentially rarer with their rank among all images, a scale on which every
    kind of certainty is alike. One wrong answer is added at the lowest rank, which matters if there are hardly any.
    """
    ranked = np.sort(certainty[active])
    count = len(ranked)
    if not count:
        return -math.inf
    ranks = np.searchsorted(ranked, certainty[wrong], "right") / count
    tail = np.sort(np.append(ranks, 0.0))[::-1][:TAIL]
    mean = max(float((tail - tail[-1]).sum()) / max(1, len(tail) - 1), 1 / count)
    expected = len(tail) / (allowed * len(certainty))  # wrong answers in the tail, as a multiple of the allowed ones
    rank = max(tail[-1] + mean * max(0.0, math.log(expected)), tail[0])
    at = math.ceil(rank * count)
    return math.inf if at >= count else _above(ranked[max(at - 1, 0)], ranked)


def _above(certainty: float, others: NDArray[np.float64]) -> float:
    """Return a threshold between a certainty and the next larger one, so that rounding does not decide."""
    larger = others[others > certainty]
    return float((certainty + larger.min()) / 2) if len(larger) else math.inf
