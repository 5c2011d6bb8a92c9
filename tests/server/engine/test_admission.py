"""Which requests are admitted, and how long each is predicted to take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.admission import REACH, Admission
from server.errors import Code, ServiceError


def code_of(admission: Admission, wanted: int, under_way: int, within_s: float) -> Code | None:
    try:
        admission.check(wanted, under_way, within_s)
    except ServiceError as error:
        return error.code
    return None


@given(st.integers(1, 20), st.integers(1, 30), st.data())
def test_all_places_are_given_and_no_more(places: int, wanted: int, data: st.DataObject) -> None:
    under_way = data.draw(st.integers(0, places))
    expected = None if under_way + wanted <= places else Code.QUEUE_FULL
    assert code_of(Admission(places), wanted, under_way, 1) is (Code.INVALID_PARAMETER if wanted > places else expected)


def test_an_answer_that_would_be_late_is_refused_but_never_to_a_lone_request() -> None:
    admission = Admission(8)
    for _ in range(3):
        admission.observe(1, 0.1)
    assert code_of(admission, 2, 2, 0.5) is None
    assert code_of(admission, 2, 2, 0.3) is Code.OVERLOADED
    assert code_of(admission, 2, 0, 0.001) is None


def test_what_was_never_measured_is_not_feared() -> None:
    assert Admission(1).predict_s(1000) == 0


@given(st.floats(1e-3, 1e3), st.integers(1, 100), st.integers(1, 100))
def test_what_never_varies_is_predicted_exactly(seconds: float, under_way: int, asked: int) -> None:
    admission = Admission(1)
    for _ in range(3):
        admission.observe(under_way, under_way * seconds)
    assert admission.predict_s(asked) == pytest.approx(min(asked, REACH * under_way) * seconds)


def test_what_varies_is_predicted_with_a_margin_above_nearly_all_of_it() -> None:
    admission = Admission(1)
    measured_s = [0.05 + 0.01 * (n % 5) for n in range(100)]
    for seconds in measured_s:
        admission.observe(1, seconds)
    assert max(measured_s) < admission.predict_s(1) < 3 * max(measured_s)


def test_a_cold_first_answer_does_not_make_the_others_look_late() -> None:
    admission = Admission(16)
    seen = [(1, 2.97), (2, 0.31), (4, 0.39), (5, 0.72), (6, 0.72), (3, 0.80), (7, 0.87), (8, 0.99)]
    for under_way, seconds in seen:
        admission.observe(under_way, seconds)
    assert code_of(admission, 1, 7, 8.0) is None


def test_the_first_answers_of_a_burst_do_not_make_the_others_look_late() -> None:
    admission = Admission(512)
    seen = [(1, 0.261), (2, 0.407), (3, 0.524), (7, 0.516), (10, 0.515), (11, 0.698), (17, 0.720), (45, 1.2)]
    for under_way, seconds in seen:  # with 170 to 256 images under way, the last of which took 4 s
        admission.observe(under_way, seconds)
        assert code_of(admission, 1, 256, 8.0) is None


def test_a_slow_time_is_forgotten() -> None:
    admission = Admission(1)
    for seconds in [10.0] * 10 + [0.1] * 100:
        admission.observe(1, seconds)
    assert admission.predict_s(1) == pytest.approx(0.1, rel=0.01)
