"""Fits what makes a classifier's probabilities reliable, on images whose classes are known.

One half of the images is for fitting: every second of them for the temperature, the others for prediction sets and the
threshold of "unknown". These are fitted to logits divided by the temperature, on images that it was not fitted on, so
that they hold for new images. All figures are measured on the other half.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from export.comparison import probabilities
from models.confidence import conformal_scores, in_set, kept_scores, unknown_scores
from models.errors import ExpectedError
from models.manifest import Miscalibration, PredictionSets, SetFigures, SetMethod, Unknown, UnknownScore

METHODS: tuple[SetMethod, ...] = get_args(SetMethod)
SCORES: tuple[UnknownScore, ...] = get_args(UnknownScore)
BINS = 15
"""As in arXiv:1706.04599."""
COVERAGES = (0.8, 0.9, 0.95)
"""Coverages at which sets are measured."""
PENALTY, PENALTY_FROM = 0.01, 5
"""RAPS's parameters, as its authors use them for ImageNet."""
LEAST_IMAGES = 80
"""A quarter of them is 20; a threshold that keeps 95 % needs 19."""
_LARGEST = 100.0
"""Largest temperature; the smallest is its inverse. Trained networks have 0.5 to 4."""
_STEPS = 60
_NO_SLOPE = 1e-9
"""Slope that rounding alone can cause."""


class ConfidenceError(ExpectedError):
    """The images do not suffice for a fit."""


class Parts(NamedTuple):
    """Which image serves which purpose, as indices int64[...]."""

    temperature: NDArray[np.int64]
    rest: NDArray[np.int64]
    """For sets and threshold."""
    held_out: NDArray[np.int64]


class Bin(NamedTuple):
    """The images whose best class's probability lies in one of BINS equal intervals."""

    images: int
    confidence: float
    """Mean probability of their best classes."""
    accuracy: float
    """Share of them that are classified correctly."""


class Curve(NamedTuple):
    """How reliable the probabilities of one classifier are: see `bins` and `risk_coverage`."""

    label: str
    bins: Sequence[Bin]
    risk_coverage: Sequence[tuple[float, float]]


def parts(images: int) -> Parts:
    """Split this many images at random, always with the same seed: images sorted by class or time are not exchangeable.

    Raises:
        ConfidenceError: there are too few.
    """
    if images < LEAST_IMAGES:
        raise ConfidenceError(
            f"{images} images are too few to calibrate on: give at least {LEAST_IMAGES}, better several hundred"
        )
    order = np.random.default_rng(0).permutation(images)
    half = images // 2
    return Parts(order[:half:2], order[1:half:2], order[half:])


def fit_temperature(logits: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    """Find the temperature that makes the true classes most likely (section 4.2 of arXiv:1706.04599).

    The mean negative log likelihood is convex in the temperature's inverse, so its slope has one zero, which bisection
    finds for any network.

    Args:
        logits: of the network, float32[M, num_classes].
        classes: the true classes, int64[M].

    Raises:
        ConfidenceError: there is no such temperature, for example because all images are classified correctly.
    """
    exact = logits.astype(np.float64)
    of_true = exact[np.arange(len(exact)), classes].mean()

    def slope(inverse: float) -> float:
        expected = (probabilities(exact * inverse, "softmax") * exact).sum(1).mean()
        return float(expected - of_true)

    low, high = -math.log(_LARGEST), math.log(_LARGEST)  # of the inverse, as its logarithm
    if slope(math.exp(high)) < _NO_SLOPE:
        raise ConfidenceError(
            f"the network is right about all {len(classes)} images for the temperature, or almost all: they do not tell"
            " how sure it may be; give more images, or harder ones"
        )
    if slope(math.exp(low)) >= 0:
        raise ConfidenceError(
            f"on {len(classes)} images the network is no better than chance: is each in the folder of its class?"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def miscalibration(logits: NDArray[np.float32], classes: NDArray[np.int64]) -> Miscalibration:
    """Measure how far probabilities are from frequencies, given logits float32[M, num_classes] and classes int64[M]."""
    exact = logits.astype(np.float64)
    nll = unknown_scores(logits, "energy") - exact[np.arange(len(exact)), classes]
    gaps = [one.images * abs(one.accuracy - one.confidence) for one in bins(probabilities(logits, "softmax"), classes)]
    return Miscalibration(ece=math.fsum(gaps) / len(classes), nll=float(nll.mean()))


def bins(probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> list[Bin]:
    """Sort images by the probability of their best class into BINS equal intervals, and leave out empty ones.

    Args:
        probabilities: float64[M, num_classes].
        classes: the true classes, int64[M].
    """
    confidences = probabilities.max(1)
    right = probabilities.argmax(1) == classes
    fifteenths = np.minimum((confidences * BINS).astype(np.int64), BINS - 1)
    masks = [fifteenths == which for which in range(BINS)]
    return [
        Bin(int(mask.sum()), float(confidences[mask].mean()), float(right[mask].mean())) for mask in masks if mask.any()
    ]


def risk_coverage(probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> list[tuple[float, float]]:
    """Measure the errors that remain if only the surest images are answered (arXiv:1705.08500).

    Returns:
        (share of the images that are answered, share of these answers that are wrong), at most 100 points.
    """
    wrong = (probabilities.argmax(1) != classes)[np.argsort(-probabilities.max(1), kind="stable")]
    risks = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    counts = np.unique(np.ceil(np.linspace(0, 1, 101)[1:] * len(wrong)).astype(np.int64))
    return [(float(count / len(wrong)), float(risks[count - 1])) for count in counts]


def curve(label: str, probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> Curve:
    """Compute both curves from probabilities float64[M, num_classes] and the true classes int64[M]."""
    return Curve(label, bins(probabilities, classes), risk_coverage(probabilities, classes))


def fit_sets(logits: NDArray[np.float32], classes: NDArray[np.int64], method: SetMethod) -> PredictionSets:
    """Fit prediction sets to logits float32[M, num_classes], already divided by the temperature."""
    penalty, penalty_from = (PENALTY, PENALTY_FROM) if method == "raps" else (0.0, 0)
    scores = conformal_scores(probabilities(logits, "softmax"), method, penalty, penalty_from)
    return PredictionSets(
        method=method,
        penalty=penalty,
        penalty_from=penalty_from,
        images=len(classes),
        scores=kept_scores(scores[np.arange(len(classes)), classes]),
    )


def measured_sets(
    sets: PredictionSets, logits: NDArray[np.float32], classes: NDArray[np.int64]
) -> tuple[SetFigures, ...]:
    """Measure sets on other images, at each of COVERAGES."""
    exact = probabilities(logits, "softmax")
    found = []
    for coverage in COVERAGES:
        chosen = in_set(exact, sets, coverage)
        found.append(
            SetFigures(
                coverage=coverage,
                covered=float(chosen[np.arange(len(classes)), classes].mean()),
                mean_size=float(chosen.sum(1).mean()),
            )
        )
    return tuple(found)


def fit_unknown(
    known: NDArray[np.float32],
    held_out: NDArray[np.float32],
    keep_known: float,
    none_of_them: NDArray[np.float32] | None = None,
) -> Unknown:
    """Fit the threshold that accepts a share of the images of the classes; other images choose the better score.

    Args:
        known: logits of images of the classes, float32[M, num_classes], to fit on.
        held_out: logits of other such images, to measure on.
        keep_known: share of them to accept, above 0 and below 1.
        none_of_them: logits of images of none of the classes: one half chooses the score, the other half measures it;
            None: the largest logit is the score.

    Raises:
        ConfidenceError: there are too few images.
    """
    rank = math.floor(round((len(known) + 1) * (1 - keep_known), 9))
    if rank < 1:
        least = math.ceil(round(1 / (1 - keep_known), 9)) - 1
        raise ConfidenceError(
            f"to keep {100 * keep_known:.4g} % of the known takes {4 * least} images, a quarter of them for the"
            f" threshold, which has {len(known)}"
        )
    score: UnknownScore = "max_logit"
    rejected, auroc, measured_on = None, {}, known[:0]
    if none_of_them is not None:
        if len(none_of_them) < 2:
            raise ConfidenceError("give at least two images of none of the classes, to choose by and to measure on")
        order = np.random.default_rng(0).permutation(len(none_of_them))
        chosen_by, measured_on = none_of_them[order[1::2]], none_of_them[order[::2]]
        score = max(SCORES, key=lambda each: separation(unknown_scores(known, each), unknown_scores(chosen_by, each)))
        auroc = {each: separation(unknown_scores(held_out, each), unknown_scores(measured_on, each)) for each in SCORES}
    # As for sets, the image to classify counts as one more. Rounding down accepts more images.
    threshold = math.floor(np.sort(unknown_scores(known, score))[rank - 1] * 1e4) / 1e4
    if none_of_them is not None:
        rejected = float((unknown_scores(measured_on, score) < threshold).mean())
    return Unknown(
        score=score,
        threshold=threshold,
        keep_known=keep_known,
        images=len(known),
        known=float((unknown_scores(held_out, score) >= threshold).mean()),
        unknown_images=0 if none_of_them is None else len(none_of_them),
        unknown_rejected=rejected,
        auroc=auroc,
    )


def separation(known: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Area under the ROC curve: how often one of `known` scores higher than one of `others`; ties count half."""
    rising = np.sort(others)
    below = np.searchsorted(rising, known, "left") + np.searchsorted(rising, known, "right")
    return float(below.sum() / (2 * len(known) * len(others)))
