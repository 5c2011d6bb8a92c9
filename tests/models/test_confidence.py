import json
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from models import confidence
from models.manifest import Confidence, Manifest, PredictionSets, SetMethod, Unknown
from tests.export.drafts import draft

METHODS: tuple[SetMethod, ...] = get_args(SetMethod)
RAPS = {"penalty": 0.01, "penalty_from": 5}


def sets_of(scores: NDArray[np.float64], method: SetMethod = "lac") -> PredictionSets:
    further: dict[str, Any] = RAPS if method == "raps" else {}
    return PredictionSets(method=method, images=len(scores), scores=confidence.kept_scores(scores), **further)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(logits - logits.max(1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return found


def classified(random: np.random.Generator, images: int, classes: int = 12) -> tuple[NDArray[Any], NDArray[Any]]:
    """Overconfident probabilities float64[images, classes], and the true classes, of independent images."""
    logits = random.normal(0, 2, (images, classes))
    true = (logits + random.gumbel(0, 1, logits.shape)).argmax(1)
    return softmax(3 * logits), true


def of_true(probabilities: NDArray[np.float64], true: NDArray[np.int64], method: SetMethod) -> NDArray[np.float64]:
    further: dict[str, Any] = RAPS if method == "raps" else {}
    found: NDArray[np.float64] = confidence.conformal_scores(probabilities, method, **further)[
        np.arange(len(true)), true
    ]
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.97])
def test_sets_hold_the_true_class_as_often_as_asked_for(method: SetMethod, coverage: float) -> None:
    random = np.random.default_rng(20)
    covered = []
    for _ in range(200):
        probabilities, true = classified(random, 250)
        sets = sets_of(of_true(probabilities[:50], true[:50], method), method)
        held = confidence.in_set(probabilities[50:], sets, coverage)[np.arange(200), true[50:]]
        covered.append(held.mean())
    # A calibration's coverage is Beta distributed, and its estimate from 200 images binomial. These are 5 standard
    # deviations of the mean of 200 such estimates: less than one mean in 3 million is off by more.
    spread = 5 * (coverage * (1 - coverage) * (1 / 52 + 1 / 200) / 200) ** 0.5
    assert np.mean(covered) >= coverage - spread
    if coverage > 0.5:  # at most 1 / (n + 1) more, where less than the best class is not enough
        assert np.mean(covered) <= coverage + 1 / 51 + spread + 0.01


@given(
    logits=st.lists(st.floats(-20, 20), min_size=2, max_size=8),
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=40),
    two=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
    method=st.sampled_from(METHODS),
)
def test_sets_are_nested_and_start_with_the_most_probable_classes(
    logits: list[float], scores: list[float], two: tuple[float, float], method: SetMethod
) -> None:
    sets = sets_of(np.array(scores), method)
    probabilities = softmax(np.array([logits]))
    less, more = (confidence.in_set(probabilities, sets, coverage)[0] for coverage in sorted(two))
    assert less[probabilities[0].argmax()]
    assert not (less & ~more).any()
    order = np.argsort(-probabilities[0], kind="stable")
    size = confidence.set_size(probabilities[0][order], sets, max(two))
    assert set(order[:size]) == set(np.flatnonzero(more))


@given(st.integers(1, 3000), st.integers(1, 9999))
def test_no_quantile_that_is_kept_is_below_the_exact_one(images: int, hundredths_of_percent: int) -> None:
    exact = Fraction(hundredths_of_percent, 10_000)
    coverage = float(exact)
    scores = np.arange(1, images + 1) / (images + 1)
    sets = sets_of(scores)
    assert len(sets.scores) == min(images, 999)
    rank = -(-exact * (images + 1) // 1)
    kept = confidence.quantile(sets, coverage)
    if coverage <= confidence.most_coverage(sets):
        assert kept >= rank / (images + 1) - 1e-9
        assert kept <= (rank + images / 999 + 1) / (images + 1) + 1e-6
    if images <= 999:
        assert (kept == np.inf) == (rank > images)


@pytest.mark.parametrize(
    ("images", "coverage", "rank"), [(9, 0.9, 9), (9, 0.91, None), (99, 0.07, 7), (99, 0.071, 8), (4, 0.001, 1)]
)
def test_the_image_that_is_asked_about_counts_as_one_more(images: int, coverage: float, rank: int | None) -> None:
    scores = np.arange(1, images + 1) / 1024
    expected = np.inf if rank is None else np.ceil(rank / 1024 * 1e7) / 1e7
    assert confidence.quantile(sets_of(scores), coverage) == expected


def test_scores_are_those_of_the_papers() -> None:
    probabilities = np.array([[0.2, 0.5, 0.3]])
    assert confidence.conformal_scores(probabilities, "lac") == pytest.approx(np.array([[0.8, 0.5, 0.7]]))
    assert confidence.conformal_scores(probabilities, "aps") == pytest.approx(np.array([[0.8, 0.0, 0.5]]))
    assert confidence.conformal_scores(probabilities, "raps", 0.1, 1) == pytest.approx(np.array([[1.0, 0.0, 0.6]]))


def test_an_image_is_known_from_the_threshold_on() -> None:
    logits = np.array([1.0, 800.0, 3.0], np.float32)
    for score in ("max_logit", "energy"):
        assert confidence.unknown_scores(logits[None], score)[0] == pytest.approx(800)
    assert confidence.unknown_scores(np.zeros((1, 4), np.float32), "energy")[0] == pytest.approx(np.log(4))
    unknown = Unknown(score="max_logit", threshold=800, keep_known=0.95, images=100, known=0.95)
    assert confidence.is_known(logits, unknown)
    assert not confidence.is_known(logits, unknown.model_copy(update={"threshold": 800.1}))


def test_manifest_of_before_calibration_has_none_and_one_with_it_comes_back_as_it_was() -> None:
    known = json.loads(draft().model_dump_json())
    del known["confidence"]
    assert Manifest.model_validate(known).confidence is None
    calibrated = draft().model_copy(
        update={"confidence": Confidence(temperature=1.5, sets=sets_of(np.linspace(0, 1, 20)))}
    )
    assert Manifest.model_validate_json(calibrated.model_dump_json()) == calibrated


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"activation": "sigmoid", "confidence": {"temperature": 1.5}}, "not for sigmoid"),
        ({"confidence": {"temperature": 0}}, "greater than 0"),
        ({"confidence": {"temperature": 1, "sets": {"method": "lac", "images": 2, "scores": [1, 0]}}}, "do not rise"),
    ],
)
def test_confidence_that_cannot_be_is_refused(changes: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValidationError, match=mistake):
        Manifest.model_validate(json.loads(draft().model_dump_json()) | changes)
