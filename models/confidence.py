"""How sure a model is, by what a manifest says: prediction sets, "none of the classes", and the rules of cascades.

Whoever calibrates and whoever serves make them here, so that what was measured is what serves. All logits are those of
the complete graph, which a temperature has divided.
"""

import math
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from models.manifest import Activation, PredictionSets, Rule, RuleKind, SetMethod, Unknown, UnknownScore

MOST_SCORES = 999
"""That a manifest keeps: so many distinguish coverages of 0.1 % and more."""
_DECIMALS = 7
"""All that float32 holds of a probability."""


def conformal_scores(
    probabilities: NDArray[np.float64], method: SetMethod, penalty: float = 0.0, penalty_from: int = 0
) -> NDArray[np.float64]:
    """How little each class fits an image: float64[M, num_classes] of probabilities of this shape.

    Classes of equal probability are taken in their order. Nothing is drawn by chance, as the authors of APS and RAPS
    do to have sets that are a little smaller: the same image has the same set, which always has its best class.
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
    """What a manifest keeps of the true classes' scores, float64[n]: all of up to 999, else as many of their quantiles.

    Both are rounded up, which makes sets larger and never smaller. Element i of m is a score of rank
    ceil((n + 1) (i + 1) / (m + 1)), so that `quantile` reads both alike.
    """
    rising = np.sort(scores)
    kept = min(len(rising), MOST_SCORES)
    ranks = [-(-(len(rising) + 1) * (at + 1) // (kept + 1)) for at in range(kept)]
    up = np.ceil(rising[np.array(ranks) - 1] * 10**_DECIMALS) / 10**_DECIMALS
    return tuple(up.tolist())


def most_coverage(sets: PredictionSets) -> float:
    """The largest coverage that so many images are enough for."""
    return len(sets.scores) / (len(sets.scores) + 1)


def quantile(sets: PredictionSets, coverage: float) -> float:
    """The score that the true class of an image does not exceed with a probability of `coverage`, 0 to 1.

    Of n images it is that of rank ceil((n + 1) coverage): the image that is asked about counts as one more (theorem 1
    of arXiv:2107.07511). Infinity where `coverage` is more than `most_coverage`.
    """
    # 100 * 0.07 is 7.000000000000001, which is 7
    rank = max(1, math.ceil(round((len(sets.scores) + 1) * coverage, 9)))
    return sets.scores[rank - 1] if rank <= len(sets.scores) else math.inf


def in_set(probabilities: NDArray[np.float64], sets: PredictionSets, coverage: float) -> NDArray[np.bool_]:
    """Which classes are in the set of each image, bool[M, num_classes]; the most probable always is.

    Over images like those of the calibration, a share of at least `coverage` of the sets holds the true class.
    A larger coverage's set holds that of a smaller one.
    """
    scores = conformal_scores(probabilities, sets.method, sets.penalty, sets.penalty_from)
    found = scores <= quantile(sets, coverage)
    np.put_along_axis(found, probabilities.argmax(1)[:, None], values=True, axis=1)
    return found


def set_size(probabilities: NDArray[np.float64], sets: PredictionSets, coverage: float) -> int:
    """How many classes are in the set of one image, whose probabilities are float64[num_classes], largest first.

    They are the first of them, whatever the method.
    """
    return int(in_set(probabilities[None], sets, coverage).sum())


def unknown_scores(logits: NDArray[np.float32], score: UnknownScore) -> NDArray[np.float64]:
    """How much each image is like those of the classes: float64[M] of logits [M, num_classes]."""
    exact = logits.astype(np.float64)
    largest: NDArray[np.float64] = exact.max(1)
    if score == "max_logit":
        return largest
    energy: NDArray[np.float64] = largest + np.log(np.exp(exact - largest[:, None]).sum(1))
    return energy


def is_known(logits: NDArray[np.float32], unknown: Unknown) -> bool:
    """Whether an image with these logits, float32[num_classes], is taken for one of the classes."""
    return bool(unknown_scores(logits[None], unknown.score)[0] >= unknown.threshold)


def certainty(kind: RuleKind, probabilities: NDArray[np.floating[Any]], activation: Activation) -> NDArray[np.float64]:
    """How sure answers are, the surer the larger: float64[...].

    Args:
        kind: of the rule. Margins and probabilities are 0 to 1; of the entropy, in nats, it is the negative.
        probabilities: [..., k], largest first; for the entropy, those of all classes in any order.
        activation: what made them. Of one class it is the yes or no that is sure.
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
            if activation == "sigmoid":  # each class by itself is or is not
                sure = sure + _log_sum(1 - ranked)
        case _:
            assert_never(kind)
    return np.asarray(sure)


def _log_sum(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of p log p; of a probability of 0, nothing."""
    return np.asarray((probabilities * np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))).sum(-1))


def is_sure(rule: Rule, probabilities: NDArray[np.floating[Any]], activation: Activation) -> NDArray[np.bool_]:
    """Whether answers are given: bool[...] of what `certainty` takes."""
    return np.asarray(certainty(rule.kind, probabilities, activation) >= rule.threshold)
