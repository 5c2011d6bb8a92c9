"""The gate for lower precision: whether the images show that a file agrees with FP32 often enough."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from models.intervals import Interval, clopper_pearson

Verdict = Literal["accepted", "undecided", "refused"]
_MOST = 100_000
"""Most images that anybody would compare on."""


class Judgement(NamedTuple):
    """What is known of the share of images with FP32's best class."""

    verdict: Verdict
    images: int
    agreement: float
    """Observed share."""
    wanted: float
    proven: float
    """Share that must be proven for a file to be accepted."""
    interval: Interval
    """95 % confidence interval of the share over all images like these."""

    @property
    def text(self) -> str:
        """What was observed, and what is wanted, for messages."""
        return (
            f"top-1 agreement with FP32 is {self.agreement:.1%} on {self.images} images"
            f" (95 %: {in_percent(self.interval)}), {100 * self.wanted:g} % is wanted"
        )

    def more(self) -> int | None:
        """How many more images would decide, if they agree as often as these; None: impractically many."""
        if self.agreement >= self.wanted:
            total = _least(self.images, lambda images: self._expected(images).low >= self.proven)
        else:
            total = _least(self.images, lambda images: self._expected(images).high < self.wanted)
        return total and total - self.images

    def _expected(self, images: int) -> Interval:
        return clopper_pearson(round(self.agreement * images), images)


def judge(agreeing: int, images: int, wanted: float) -> Judgement:
    """Judge a file by how many images have FP32's best class.

    It is refused if the wanted share lies above the interval. It is accepted if the observed share reaches the wanted
    one, and the interval rules out more than twice the allowed disagreements: if 99 % is wanted, 98 % must be proven.
    Proving the wanted share itself would take tens of thousands of images for a file that just reaches it.

    Args:
        agreeing: number of images with FP32's best class.
        images: number of all images, 1 or more.
        wanted: least share of agreeing images.
    """
    agreement, interval = agreeing / images, clopper_pearson(agreeing, images)
    proven = max(0.0, 1 - 2 * (1 - wanted))
    verdict: Verdict = "undecided"
    if interval.high < wanted:
        verdict = "refused"
    elif agreement >= wanted and interval.low >= proven:
        verdict = "accepted"
    return Judgement(verdict, images, agreement, wanted, proven, interval)


def in_percent(interval: Interval) -> str:
    """Write an interval of shares as people do: 94.3 to 99.8."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _least(above: int, is_enough: Callable[[int], bool]) -> int | None:
    """Find the least number greater than `above` that is enough, as are all larger ones; None: beyond `_MOST`."""
    low, high = above, above + 1
    while not is_enough(high):
        low, high = high, 2 * high
        if low >= _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
