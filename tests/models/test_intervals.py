"""What a number of trials proves, compared with published tables."""

import pytest

from models.intervals import clopper_pearson, trials_to_prove


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2527, 0.3676),  # Agresti, Categorical Data Analysis; also in Newcombe, Statistics in Medicine 17
        (15, 148, 0.0578, 0.1617),  # Newcombe 1998, table I, as the next two
        (0, 20, 0.0000, 0.1684),
        (1, 29, 0.0009, 0.1776),
        (10, 10, 0.6915, 1.0),  # (0.025)^(1/10)
        (123, 125, 0.9434, 0.9981),
    ],
)
def test_intervals_are_those_of_the_tables(successes: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(successes, trials) == pytest.approx((low, high), abs=6e-5)


def test_no_failure_in_125_proves_no_more_than_97_1_percent() -> None:
    assert clopper_pearson(125, 125).low == pytest.approx(0.025 ** (1 / 125), abs=1e-12)
    assert f"{clopper_pearson(125, 125).low:.1%}" == "97.1%"


def test_an_interval_has_the_level_that_is_asked_for_and_is_symmetric() -> None:
    assert clopper_pearson(10, 10, 0.9).low == pytest.approx(0.05**0.1, abs=1e-12)
    failed, done = clopper_pearson(3, 4000), clopper_pearson(3997, 4000)
    assert (1 - failed.high, 1 - failed.low) == pytest.approx(done, abs=1e-12)


def test_of_no_trials_nothing_is_known_and_nonsense_is_an_error() -> None:
    assert clopper_pearson(0, 0) == (0, 1)
    for successes in (-1, 3):
        with pytest.raises(ValueError, match="2 trials"):
            clopper_pearson(successes, 2)


def test_the_trials_that_prove_a_share_are_the_fewest() -> None:
    assert trials_to_prove(0.99) == 368  # the least n with 0.025^(1/n) >= 0.99
    for share, failures in ((0.99, 0), (0.99, 2), (0.999, 1)):
        enough = trials_to_prove(share, failures)
        assert clopper_pearson(enough - failures, enough).low >= share
        assert clopper_pearson(enough - failures - 1, enough - 1).low < share
