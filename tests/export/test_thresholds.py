"""When a cascade's members are sure enough, with made-up answers."""

import numpy as np
import pytest
from numpy.typing import NDArray

from export.thresholds import Asked, cheapest, pass_on

IMAGES = 1000
EVENLY = np.arange(IMAGES) / IMAGES
"""How sure a member is of each image: 0 to 0.999."""


def right_but(*wrong: int) -> NDArray[np.bool_]:
    found = np.ones(IMAGES, np.bool_)
    found[list(wrong)] = False
    return found


def test_images_go_down_to_who_is_sure_of_them() -> None:
    asked = Asked([EVENLY, 1 - EVENLY], [right_but(20, 950), right_but(10, 600), right_but(600)], [1.0, 2.0, 4.0])
    passed = pass_on(asked, [0.9, 0.5])
    assert [int((passed.answered == member).sum()) for member in range(3)] == [100, 501, 399]
    assert passed.cost == pytest.approx(1 + 2 * 0.9 + 4 * 0.399)
    assert np.flatnonzero(~passed.right).tolist() == [10, 600, 950]


def test_so_many_wrong_answers_are_given_as_are_allowed_less_a_standard_deviation() -> None:
    wrong = range(0, 200, 10)  # twenty, the surest at 0.19
    asked = Asked([EVENLY], [right_but(*wrong), right_but()], [1.0, 9.0])
    limits = cheapest(asked, allowed=0.006)
    assert limits is not None
    assert pass_on(asked, limits).right.sum() == IMAGES - 4  # 4 + 2 <= 6
    assert limits == [pytest.approx(0.1505)]  # between the fifth-surest wrong answer and the image above it


def test_where_none_is_allowed_the_threshold_is_beyond_the_surest_wrong_answer() -> None:
    wrong = range(10, 110, 10)  # the surest at 0.1
    limits = cheapest(Asked([EVENLY], [right_but(*wrong), right_but()], [1.0, 9.0]), allowed=0.001)
    assert limits is not None
    assert 0.11 < limits[0] < 0.15


def test_where_no_answer_is_wrong_some_images_are_passed_on_all_the_same() -> None:
    for images, most in ((50, 0.1), (IMAGES, 0.005)):
        few = Asked([EVENLY[:: IMAGES // images]], [np.ones(images, np.bool_)] * 2, [1.0, 9.0])
        limits = cheapest(few, allowed=0.001)
        assert limits is not None
        assert 0 <= (few.certainties[0] < limits[0]).mean() <= most


def test_what_is_allowed_is_shared_out_so_that_it_costs_least() -> None:
    first, second = right_but(*range(300, 340)), right_but(*range(20))
    asked = Asked([EVENLY, EVENLY], [first, second, right_but()], [1.0, 1.0, 100.0])
    limits = cheapest(asked, allowed=0.01)
    assert limits is not None
    passed = pass_on(asked, limits)
    assert passed.right.sum() >= IMAGES - 10
    alone = cheapest(Asked([EVENLY], [first, right_but()], [1.0, 100.0]), allowed=0.01)
    assert alone is not None
    assert passed.cost < pass_on(Asked([EVENLY], [first, right_but()], [1.0, 100.0]), alone).cost


def test_a_last_member_that_is_wrong_too_often_leaves_no_thresholds() -> None:
    assert cheapest(Asked([EVENLY], [right_but(*range(50)), right_but(*range(50))], [1.0, 9.0]), allowed=0.01) is None
