"""The gate judges by what the images prove statistically, not by the observed share alone."""

import pytest

from export.agreement import Verdict, in_percent, judge


@pytest.mark.parametrize(
    ("agreeing", "images", "wanted", "verdict"),
    [
        (123, 125, 0.99, "undecided"),  # 98.4 % observed; the true share may be 94.3 to 99.8
        (125, 125, 0.99, "undecided"),  # all agree, but so few prove only 97.1 %
        (250, 250, 0.99, "accepted"),
        (990, 1000, 0.99, "accepted"),
        (989, 1000, 0.99, "undecided"),
        (975, 1000, 0.99, "refused"),
        (10, 10, 1.0, "undecided"),  # no number of images can prove 100 %
        (999, 1000, 1.0, "refused"),
        (1, 2, 0.0, "accepted"),
    ],
)
def test_what_the_images_prove_decides(agreeing: int, images: int, wanted: float, verdict: Verdict) -> None:
    assert judge(agreeing, images, wanted).verdict == verdict


@pytest.mark.parametrize(("agreeing", "images"), [(123, 125), (125, 125), (199, 200), (4, 4), (985, 1000)])
def test_so_many_more_images_decide_and_not_many_fewer(agreeing: int, images: int) -> None:
    judged = judge(agreeing, images, 0.99)
    more = judged.more()
    assert more is not None
    total = images + more
    assert judge(round(judged.agreement * total), total, 0.99).verdict != "undecided"
    fewer = images + more * 8 // 10
    assert judge(round(judged.agreement * fewer), fewer, 0.99).verdict == "undecided"


def test_it_says_where_no_number_of_images_decides() -> None:
    assert judge(10, 10, 1.0).more() is None


def test_text_has_the_interval() -> None:
    judged = judge(123, 125, 0.99)
    assert in_percent(judged.interval) == "94.3 to 99.8"
    assert judged.text == ("top-1 agreement with FP32 is 98.4% on 125 images (95 %: 94.3 to 99.8), 99 % is wanted")
