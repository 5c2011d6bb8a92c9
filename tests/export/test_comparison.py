import numpy as np
import pytest

from export import comparison
from export.comparison import Answers

LOGITS = np.array([[[3, 1, 0]], [[0, 2, 1]], [[1, 0, 2]], [[2, 0, 1]]], np.float32)
"""Four images, one crop, three classes."""


def test_agreement_and_error_are_of_the_logits() -> None:
    other = LOGITS.copy()
    other[3, 0] = (1, 0, 2.5)
    assert Answers(other).top1_agreement(Answers(LOGITS)) == 0.75
    assert Answers(other).max_logit_error(Answers(LOGITS)) == 1.5
    assert Answers(other).divergence(Answers(LOGITS)) > 0


def test_same_answers_agree_in_everything() -> None:
    same = Answers(LOGITS + 5)  # softmax sees no constant
    assert same.top1_agreement(Answers(LOGITS)) == 1
    assert same.divergence(Answers(LOGITS)) == pytest.approx(0, abs=1e-12)


def test_divergence_is_kullback_and_leiblers() -> None:
    truth, guess = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    answers = [Answers(np.log(one).astype(np.float32)[None, None]) for one in (guess, truth)]
    assert answers[0].divergence(answers[1]) == pytest.approx(expected, rel=1e-6)


def test_accuracy_is_in_percent() -> None:
    measured = Answers(LOGITS).accuracy(np.array([0, 1, 2, 2]))
    assert (measured.top1, measured.top5) == (75, 100)


def test_crops_vote_by_their_mean_probability() -> None:
    # One crop is sure of class 1; two lean to class 0, with larger logits all the same.
    crops = Answers(np.array([[[10, 9.9], [10, 9.9], [0, 9]]], np.float32))
    assert crops.accuracy(np.array([0]), crops=1).top1 == 100
    assert crops.accuracy(np.array([1]), crops=3).top1 == 100


def test_ratio_is_taken_within_a_round() -> None:
    reference, twice = (100.0, 10.0, 10.0), (200.0, 20.0, 20.0)  # a quiet round and two busy ones
    paces = np.stack([reference, twice], axis=1)[:, :, None]
    assert comparison.times_first(paces).tolist() == [[1], [2]]
    assert np.median(paces, axis=0).tolist() == [[10], [20]]
