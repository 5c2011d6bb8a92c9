"""Exact shares of requests, and candidates that are left alone after failures."""

import pytest

from server.serving.shares import Rests, Shares


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.1, 0.3, 1 / 3, 0.5, 0.999, 1.0])
def test_of_any_number_a_candidate_has_its_share_and_never_more(share: float) -> None:
    shares, taken = Shares(), 0
    for count in range(1, 2001):
        taken += shares.takes("a", share)
        assert 0 <= count * share - taken + 1e-6 < 1 + 1e-5


def test_it_is_evenly_spread_and_each_candidate_has_its_own() -> None:
    shares = Shares()
    turns = [(shares.takes("a", 0.25), shares.takes("b", 0.5)) for _ in range(8)]
    assert [turn for turn, (a, _) in enumerate(turns, 1) if a] == [4, 8]
    assert [turn for turn, (_, b) in enumerate(turns, 1) if b] == [2, 4, 6, 8]


def test_another_share_counts_from_the_next_on() -> None:
    shares = Shares()
    assert [shares.takes("a", 0.0) for _ in range(9)] == [False] * 9  # nothing is owed for these
    assert shares.takes("a", 1.0)
    assert [shares.takes("a", 0.5) for _ in range(4)] == [False, True, False, True]


def test_who_is_left_alone_has_a_reason_until_it_is_over() -> None:
    rests = Rests()
    assert rests.reason("a", 0.0) is None
    rests.begin("a", 2.0, 8.0, "crashed")
    rests.begin("b", 3.0, 1.0, "failed")
    assert [rests.reason(each, 3.5) for each in "abc"] == ["crashed", "failed", None]
    assert [rests.reason(each, 9.0) for each in "abc"] == ["crashed", None, None]
    assert rests.reason("a", 10.0) is None
