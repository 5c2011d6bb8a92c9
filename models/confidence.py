"""How sure a model is, from its manifest: prediction sets, "none of the classes", and the rules of cascades.

Calibration and serving share this module, so that the server does exactly what was measured. All logits are those of
the complete graph, already divided by the temperature.
"""

import math
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from models.manifest import Activation, PredictionSets, Rule, RuleKind, SetMethod, Unknown, UnknownScore

MOST_SCORES = 999
"""Most scores a manifest keeps: enough for steps of 0.1 % in coverage."""
_DECIMALS = 7
"""Decimal places of a probability that float32 can hold."""


def conformal_scores(
    probabilities: NDArray[np.float64], method: SetMethod, penalty: float = 0.0, penalty_from: int = 0
) -> NDArray[np.float64]:
    """Return each class's nonconformity score, float64[M, num_classes], from probabilities of the same shape.

    Ties keep the order of the classes. Unlike the authors of APS and RAPS, who randomise to make sets a little smaller,
    this draws nothing at random: the same image always has the same set, which always has its best class.
    """
    if method == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    sums = np.cumsum(ranked, axis=1) - ranked
    if method == "raps":
        sums += penalty * np.maximum(0, np.arange(1, sums.shape[1] + 1) - penalty_from)
    scores = np.empty_like(sums)
    np.put_along_axis(scores, order, sums, axis=1)
    return scores


def kept_scores(scores: NDArray[np.float64]) -> tuple[float, ...]:
    """Reduce the true classes' scores, float64[n], for the manifest: all of up to 999, otherwise 999 quantiles.

    Scores are rounded up, which can only enlarge sets. Element i of m is the score of rank
    ceil((n + 1) (i + 1) / (m + 1)), so that `quantile` treats scores and quantiles alike.
    """
    rising = np.sort(scores)
    kept = min(len(rising), MOST_SCORES)
    ranks = [-(-(len(rising) + 1) * (at + 1) // (kept + 1)) for at in range(kept)]
    up = np.ceil(rising[np.array(ranks) - 1] * 10**_DECIMALS) / 10**_DECIMALS
    return tuple(up.tolist())


def most_coverage(sets: PredictionSets) -> float:
    """The largest coverage that the number of scores supports."""
    return len(sets.scores) / (len(sets.scores) + 1)


def quantile(sets: PredictionSets, coverage: float) -> float:
    """The score that an image's true class does not exceed with a probability of `coverage`, 0 to 1.

    It is the score of rank ceil((n + 1) coverage) of n: the image to classify counts as one more (theorem 1 of
    arXiv:2107.07511). Infinity if `coverage` is more than `most_coverage`.
    """
    # Rounded first, because 100 * 0.07 is 7.000000000000001.
    rank = max(1, math.ceil(round((len(sets.scores) + 1) * coverage, 9)))
    return sets.scores[rank - 1] if rank <= len(sets.scores) else math.inf


def in_set(probabilities: NDArray[np.float64], sets: PredictionSets, coverage: float) -> NDArray[np.bool_]:
    """Which classes are in each image's prediction set, bool[M, num_classes]; the most probable one always is.

    Over images like those of the calibration, at least a share of `coverage` of the sets holds the true class.
    The set for a larger coverage includes the set for a smaller one.
    """
    scores = conformal_scores(probabilities, sets.method, sets.penalty, sets.penalty_from)
    found = scores <= quantile(sets, coverage)
    np.put_along_axis(found, probabilities.argmax(1)[:, None], values=True, axis=1)
    return found


def set_size(probabilities: NDArray[np.float64], sets: PredictionSets, coverage: float) -> int:
    """Size of one image's prediction set, from its probabilities float64[num_classes], largest first.

    Whatever the method, the set is that many of the most probable classes.
    """
    return int(in_set(probabilities[None], sets, coverage).sum())


def unknown_scores(logits: NDArray[np.float32], score: UnknownScore) -> NDArray[np.float64]:
    """Score how much each image looks like one of the classes: float64[M] from logits [M, num_classes]."""
    exact = logits.astype(np.float64)
    largest: NDArray[np.float64] = exact.max(1)
    if score == "max_logit":
        return largest
    energy: NDArray[np.float64] = largest + np.log(np.exp(exact - largest[:, None]).sum(1))
    return energy


def is_known(logits: NDArray[np.float32], unknown: Unknown) -> bool:
    """Whether an image with these logits, float32[num_classes], counts as one of the classes."""
    return bool(unknown_scores(logits[None], unknown.score)[0] >= unknown.threshold)


def certainty(kind: RuleKind, probabilities: NDArray[np.floating[Any]], activation: Activation) -> NDArray[np.float64]:
    """Return how sure answers are, float64[...]; larger is surer.

    With a single class, the certainty is that of its yes or no.

    Args:
        kind: of the rule. Margins and probabilities are 0 to 1; for entropy the result is the negative entropy in nats.
        probabilities: [..., k], largest first; for the entropy, those of all classes in any order.
        activation: that produced the probabilities.
    """
    ranked = probabilities.astype(np.float64)
    if ranked.shape[-1] == 1:
        ranked = np.concatenate([np.maximum(ranked, 1 - ranked), np.minimum(ranked, 1 - ranked)], axis=-1)
        activation = "softmax"
    match kind:
        case "margin":
            sure = ranked[..., 0] - ranked[..., 1]
        case "probability":
            sure = ranked[..., 0]
        case "entropy":
            sure = _log_sum(ranked)
            if activation == "sigmoid":  # each class is an independent yes or no
                sure = sure + _log_sum(1 - ranked)
        case _:
            assert_never(kind)
    return np.asarray(sure)


def _log_sum(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of p log p, where a probability of 0 adds 0."""
    return np.asarray((probabilities * np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))).sum(-1))


def is_sure(rule: Rule, probabilities: NDArray[np.floating[Any]], activation: Activation) -> NDArray[np.bool_]:
    """Whether the rule accepts each answer: bool[...]; `probabilities` and `activation` as for `certainty`."""
    return np.asarray(certainty(rule.kind, probabilities, activation) >= rule.threshold)
