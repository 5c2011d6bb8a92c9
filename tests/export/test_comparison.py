import numpy as np
import pytest

from export import comparison
from export.comparison import Answers
from models.manifest import Activation

LOGITS = np.array([[[3, 1, 0]], [[0, 2, 1]], [[1, 0, 2]], [[2, 0, 1]]], np.float32)
"""Four images, one crop, three classes."""


def test_agreement_and_error_are_of_the_logits() -> None:
    other = LOGITS.copy()
    other[3, 0] = (1, 0, 2.5)
    assert Answers(other, "softmax").top1_agreement(Answers(LOGITS, "softmax")) == 0.75
    assert Answers(other, "softmax").max_logit_error(Answers(LOGITS, "softmax")) == 1.5
    assert Answers(other, "softmax").divergences(Answers(LOGITS, "softmax")).mean() > 0


@pytest.mark.parametrize(("activation", "count"), [("softmax", 1), ("sigmoid", 1)])
def test_disagreement_counts_where_the_reference_was_sure(activation: Activation, count: int) -> None:
    reference = Answers(np.array([[[1, 0]], [[0.01, 0]], [[1, 0]]], np.float32), activation)
    other = Answers(np.array([[[0, 1]], [[0, 0.01]], [[2, 0]]], np.float32), activation)
    assert other.sure_disagreements(reference) == count


def test_a_single_class_is_sure_far_from_one_half() -> None:
    reference, other = (Answers(np.array(row, np.float32)[:, None, None], "sigmoid") for row in ([1, 0.01], [-1, -1]))
    assert other.sure_disagreements(reference) == 1


def test_same_answers_agree_in_everything() -> None:
    same = Answers(LOGITS + 5, "softmax")  # a constant does not change the softmax
    assert same.top1_agreement(Answers(LOGITS, "softmax")) == 1
    assert same.divergences(Answers(LOGITS, "softmax")).mean() == pytest.approx(0, abs=1e-12)


def test_divergence_is_kullback_and_leiblers() -> None:
    truth, guess = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    answers = [Answers(np.log(one).astype(np.float32)[None, None], "softmax") for one in (guess, truth)]
    assert answers[0].divergences(answers[1]).mean() == pytest.approx(expected, rel=1e-6)


def test_accuracy_is_in_percent() -> None:
    measured = Answers(LOGITS, "softmax").accuracy(np.array([0, 1, 2, 2]))
    assert (measured.top1, measured.top5) == (75, 100)
    ranked = Answers(-np.arange(12, dtype=np.float32).reshape(2, 1, 6) % 6, "softmax")
    fifth, sixth = ranked.probabilities()[0, 0].argsort()[1::-1]
    assert ranked.accuracy(np.array([fifth, sixth])).top5 == 50


def test_crops_vote_by_their_mean_probability() -> None:
    # One crop is sure of class 1; two lean to class 0, although with larger logits.
    crops = Answers(np.array([[[10, 9.9], [10, 9.9], [0, 9]]], np.float32), "softmax")
    assert crops.accuracy(np.array([0]), crops=1).top1 == 100
    assert crops.accuracy(np.array([1]), crops=3).top1 == 100


def test_independent_probabilities_are_no_softmax() -> None:
    logits = np.array([[[0, 1000, -1000]], [[2, 2, 2]]], np.float32)
    answers = Answers(logits, "sigmoid")
    np.testing.assert_allclose(answers.probabilities()[0, 0], [0.5, 1, 0])
    np.testing.assert_allclose(answers.probabilities()[1, 0], 0.880797, atol=1e-6)
    assert answers.divergences(answers).mean() == 0


def test_divergence_of_independent_probabilities_is_that_of_each_class() -> None:
    truth, guess = np.array([0.5, 0.2]), np.array([0.25, 0.2])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    answers = [Answers(np.log(p / (1 - p)).astype(np.float32)[None, None], "sigmoid") for p in (guess, truth)]
    assert answers[0].divergences(answers[1]).mean() == pytest.approx(expected, rel=1e-6)


def test_one_class_agrees_where_it_is_as_likely_or_not() -> None:
    ours, theirs = (
        Answers(np.array(logits, np.float32).reshape(-1, 1, 1), "sigmoid")
        for logits in ([1, -1, 2, -3], [1, 1, 0.1, -1])
    )
    assert ours.top1_agreement(theirs) == 0.75


def test_ratio_is_taken_within_a_round() -> None:
    reference, other = (10.0, 20.0, 30.0), (40.0, 20.0, 30.0)  # in one round, only the reference was slowed down
    paces = np.stack([reference, other], axis=1)[:, :, None]
    assert comparison.times_first(paces).tolist() == [[1], [1]]
