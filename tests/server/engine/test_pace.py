"""What the pace predicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.pace import Pace


def test_what_was_never_measured_is_not_feared() -> None:
    assert Pace().predict_s(1000) == 0


@given(st.floats(1e-3, 1e3), st.integers(1, 100), st.integers(1, 100))
def test_what_never_varies_is_predicted_exactly(seconds: float, places: int, asked: int) -> None:
    pace = Pace()
    for _ in range(3):
        pace.observe(places, places * seconds)
    assert pace.predict_s(asked) == pytest.approx(asked * seconds)


def test_what_varies_is_predicted_with_a_margin_above_nearly_all_of_it() -> None:
    pace = Pace()
    measured_s = [0.05 + 0.01 * (n % 5) for n in range(100)]
    for seconds in measured_s:
        pace.observe(1, seconds)
    assert max(measured_s) < pace.predict_s(1) < 3 * max(measured_s)


def test_a_slow_time_is_forgotten() -> None:
    pace = Pace()
    for seconds in [10.0] * 10 + [0.1] * 100:
        pace.observe(1, seconds)
    assert pace.predict_s(1) == pytest.approx(0.1, rel=0.01)
