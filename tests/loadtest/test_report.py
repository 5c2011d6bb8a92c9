import math

import pytest

from loadtest.plots import over_time
from loadtest.report import Verdict, html


@pytest.mark.parametrize(("found", "kept"), [(1.0, True), (2.0, True), (2.1, False), (math.nan, False)])
def test_a_threshold_is_kept_up_to_its_value(found: float, kept: bool) -> None:
    assert Verdict("p99", found, 2.0).kept == kept


def test_what_comes_from_outside_is_no_markup() -> None:
    page = html("<b>", [Verdict("<i>", 1, 2)], {"<u>": "<s>"}, [over_time("<q>", {"<a>": ([0, 1], [2, 3])})])
    assert not [tag for tag in ("<b>", "<i>", "<u>", "<s>", "<q>", "<a>") if tag in page]
