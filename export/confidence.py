"""What makes a classifier's probabilities mean something, fitted on images whose classes are known.

Half of the images are fitted on, every second of them for the temperature and the others for prediction sets and the
threshold of "unknown", which are fitted to what the temperature has made: so both hold for images that neither has
seen. All figures are measured on the other half.
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
"""What sets are measured at."""
PENALTY, PENALTY_FROM = 0.01, 5
"""Of RAPS, as its authors use it for ImageNet."""
LEAST_IMAGES = 80
"""A quarter is 20: what keeps 95 % needs 19."""
_LARGEST = 100.0
"""Temperature; the least is its inverse. Trained networks have 0.5 to 4."""
_STEPS = 60
_NO_SLOPE = 1e-9
"""Of rounding alone."""


class ConfidenceError(ExpectedError):
    """The images do not say what was asked for."""


class Parts(NamedTuple):
    """Which image is for what, as indices int64[...]."""

    temperature: NDArray[np.int64]
    rest: NDArray[np.int64]
    """Sets and threshold."""
    held_out: NDArray[np.int64]


class Bin(NamedTuple):
    """The images whose best class has a probability of one fifteenth."""

    images: int
    confidence: float
    """Mean probability of their best classes."""
    accuracy: float
    """Share of them that are right."""


class Curve(NamedTuple):
    """What one way to classify images says of how sure it is: see `bins` and `risk_coverage`."""

    label: str
    bins: Sequence[Bin]
    risk_coverage: Sequence[tuple[float, float]]


def parts(images: int) -> Parts:
    """Split so many images at random, with the same seed always: what is sorted by class or time is not exchangeable.

    Raises:
        ConfidenceError: there are too few.
    """
    if images < LEAST_IMAGES:
        raise ConfidenceError(
            f"{images} images are too few to calibrate on: give {LEAST_IMAGES} at least, or some hundred"
        )
    order = np.random.default_rng(0).permutation(images)
    half = images // 2
    return Parts(order[:half:2], order[1:half:2], order[half:])


def fit_temperature(logits: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    """The temperature that makes the true classes most likely (section 4.2 of arXiv:1706.04599).

    The mean negative log likelihood is convex in the temperature's inverse, so its slope has one zero, which bisection
    finds whatever the network.

    Args:
        logits: of the network, float32[M, num_classes].
        classes: the true ones, int64[M].

    Raises:
        ConfidenceError: there is no such temperature, as where all images are classified rightly.
    """
    exact = logits.astype(np.float64)
    of_true = exact[np.arange(len(exact)), classes].mean()

    def slope(inverse: float) -> float:
        expected = (probabilities(exact * inverse, "softmax") * exact).sum(1).mean()
        return float(expected - of_true)

    low, high = -math.log(_LARGEST), math.log(_LARGEST)  # of the inverse, as its logarithm
    if slope(math.exp(high)) < _NO_SLOPE:
        raise ConfidenceError(
            f"the network is right about all {len(classes)} images that the temperature is fitted on, or as good as"
            " that: they say nothing of how sure it may be; give more images, or harder ones"
        )
    if slope(math.exp(low)) >= 0:
        raise ConfidenceError(
            f"on {len(classes)} images the network knows no more than chance does: is each in the folder of its class?"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def miscalibration(logits: NDArray[np.float32], classes: NDArray[np.int64]) -> Miscalibration:
    """How far probabilities of logits float32[M, num_classes] are from what they say; the true classes are int64[M]."""
    exact = logits.astype(np.float64)
    nll = unknown_scores(logits, "energy") - exact[np.arange(len(exact)), classes]
    gaps = [one.images * abs(one.accuracy - one.confidence) for one in bins(probabilities(logits, "softmax"), classes)]
    return Miscalibration(ece=math.fsum(gaps) / len(classes), nll=float(nll.mean()))


def bins(probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> list[Bin]:
    """Images by the probability of their best class, in fifteenths; those without an image are left out.

    Args:
        probabilities: float64[M, num_classes].
        classes: the true ones, int64[M].
    """
    confidences = probabilities.max(1)
    right = probabilities.argmax(1) == classes
    fifteenths = np.minimum((confidences * BINS).astype(np.int64), BINS - 1)
    masks = [fifteenths == which for which in range(BINS)]
    return [
        Bin(int(mask.sum()), float(confidences[mask].mean()), float(right[mask].mean())) for mask in masks if mask.any()
    ]


def risk_coverage(probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> list[tuple[float, float]]:
    """What of errors is left where only the surest images are answered (arXiv:1705.08500).

    Returns:
        (share of the images that are answered, share of those that are wrong), at most 100 points.
    """
    wrong = (probabilities.argmax(1) != classes)[np.argsort(-probabilities.max(1), kind="stable")]
    risks = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    counts = np.unique(np.ceil(np.linspace(0, 1, 101)[1:] * len(wrong)).astype(np.int64))
    return [(float(count / len(wrong)), float(risks[count - 1])) for count in counts]


def curve(label: str, probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> Curve:
    """Both, of probabilities float64[M, num_classes] and the true classes int64[M]."""
    return Curve(label, bins(probabilities, classes), risk_coverage(probabilities, classes))


def fit_sets(logits: NDArray[np.float32], classes: NDArray[np.int64], method: SetMethod) -> PredictionSets:
    """What prediction sets are made by, of logits that have their temperature, float32[M, num_classes]."""
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
    """What sets are worth on other images, at each of COVERAGES."""
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
    """The threshold that lets pass so many images of the classes, and the better score, where there is what to reject.

    Args:
        known: logits of images of the classes, float32[M, num_classes], to fit on.
        held_out: the same of others, to measure on.
        keep_known: share of those that are to pass, above 0 and below 1.
        none_of_them: logits of images of none of the classes, of which one half chooses the score and the other
            measures it; None: the largest logit is the score.

    Raises:
        ConfidenceError: there are too few.
    """
    rank = math.floor(round((len(known) + 1) * (1 - keep_known), 9))
    if rank < 1:
        least = math.ceil(round(1 / (1 - keep_known), 9)) - 1
        raise ConfidenceError(
            f"to keep {100 * keep_known:.4g} % of what is known takes {4 * least} images, of which a quarter is for"
            f" that: it has {len(known)}"
        )
    score: UnknownScore = "max_logit"
    rejected, auroc, measured_on = None, {}, known[:0]
    if none_of_them is not None:
        if len(none_of_them) < 2:
            raise ConfidenceError("give two images of none of the classes at least, to choose by and to measure on")
        order = np.random.default_rng(0).permutation(len(none_of_them))
        chosen_by, measured_on = none_of_them[order[1::2]], none_of_them[order[::2]]
        score = max(SCORES, key=lambda each: separation(unknown_scores(known, each), unknown_scores(chosen_by, each)))
        auroc = {each: separation(unknown_scores(held_out, each), unknown_scores(measured_on, each)) for each in SCORES}
    # As for sets, the image that is asked about counts as one more; rounded down, which lets more pass.
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
    """Area under the ROC curve: how often one of `known` has the higher score than one of `others`; ties count half."""
    rising = np.sort(others)
    below = np.searchsorted(rising, known, "left") + np.searchsorted(rising, known, "right")
    return float(below.sum() / (2 * len(known) * len(others)))
