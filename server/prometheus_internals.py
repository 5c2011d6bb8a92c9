"""Uses of the Prometheus client's internals, which make counting almost free for a request.

Any release of the client may change them, so its version is pinned; `tests/server/test_metrics.py` reads the numbers
written here through the client's public interface.
"""

import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client import Histogram, values

from server.metrics import DIRECTORY_VARIABLE


def value_class(identity: str) -> type:
    """The client's class for one number (`values.ValueClass`), stored in one of this process's files."""

    class Value(values.MultiProcessValue(process_identifier=lambda: identity)):  # type: ignore[misc]
        """Changes the number in the mapped file. The client would lock, check for a fork, and write a copy.

        Only one thread writes each number. A reader sees it before or after a change, never between, since it is eight
        aligned bytes.
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


def forget_gauges(identity: str) -> None:
    """Empty the file of gauges that are added up over the processes (`livesum`), of a process that has ended."""
    with (Path(os.environ[DIRECTORY_VARIABLE]) / f"gauge_livesum_{identity}.db").open("r+b") as file:
        file.write(bytes(8))  # the number of bytes in use


class Times(Histogram):
    """A histogram with cheaper methods than `observe`."""

    def add(self, amount: float, times: int = 1) -> None:
        """Observe the same amount `times` times."""
        self._sum.inc(amount * times)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(times)

    def add_all(self, amounts: Sequence[float]) -> None:
        """Observe each of these."""
        self._sum.inc(sum(amounts))
        for amount in amounts:
            self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)
