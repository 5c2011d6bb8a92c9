"""What this server needs of the Prometheus client's inside, so that counting costs a request next to nothing.

Any release of the client may change it, so the version is pinned; `tests/server/test_metrics.py` reads what is written
here by the client's own means.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from prometheus_client import Histogram, values


def value_class(identity: str) -> type:
    """What the client keeps each number in (`values.ValueClass`): a place in one of the files of this process."""

    class Value(values.MultiProcessValue(process_identifier=lambda: identity)):  # type: ignore[misc]
        """Changes the number where it lies, where the client locks, looks for a fork, and writes a copy.

        One thread of the process writes each; a reader sees it before or after a change, since it is eight bytes that
        are aligned.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            start = self._file._positions[self._key]
            self._number = memoryview(self._file._m)[start : start + 8].cast("d")

        def inc(self, amount: float) -> None:
            self._number[0] += amount

        def set(self, value: float) -> None:
            self._number[0] = value

        def get(self) -> float:
            return self._number[0]

    return Value


class Times(Histogram):
    """A histogram, and what costs less than its `observe`."""

    def add(self, amount: float, times: int = 1) -> None:
        """Observe the same `times` times."""
        self._sum.inc(amount * times)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(times)

    def add_all(self, amounts: Sequence[float]) -> None:
        """Observe each of these."""
        self._sum.inc(sum(amounts))
        for amount in amounts:
            self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)
