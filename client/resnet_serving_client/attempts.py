"""Decides whether and when a request is retried."""

import math
import random
import time
from collections.abc import Callable

from resnet_serving_client.errors import BusyError, ClientError, NoAnswerError

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
LONGEST_WAIT_S = 86_400.0
"""Most seconds for one attempt, however far the deadline is: sockets and event loops cannot wait for ever."""
MOST_LOST = 4
"""Attempts that may end without an answer: few, so that a wrong address is reported soon, yet enough for a restart."""


class Attempts:
    """The retry policy for one request; it neither sends nor waits.

    A busy service is asked again until the deadline, after its Retry-After plus a pause that doubles each time. The
    pause is shortened at random, so that many clients do not come back together. Classifying changes nothing in the
    service, so a request may be repeated.
    """

    def __init__(
        self,
        deadline_s: float,
        *,
        most_lost: float = MOST_LOST,
        longest_pause_s: float = LONGEST_PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._ends_s = clock() + deadline_s
        self._most_lost = most_lost
        self._longest_pause_s = longest_pause_s
        self._made = 0
        self._lost = 0

    def left_s(self) -> float:
        """Seconds left until the deadline; at least one millisecond, at most LONGEST_WAIT_S."""
        return max(0.001, min(LONGEST_WAIT_S, self._ends_s - self._clock()))

    def pause_s(self, error: ClientError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            ClientError: `error` itself, if there is no next attempt.
        """
        self._made += 1
        self._lost += isinstance(error, NoAnswerError)
        if not isinstance(error, BusyError | NoAnswerError) or self._lost >= self._most_lost:
            raise error
        pause_s = min(self._longest_pause_s, math.ldexp(FIRST_PAUSE_S, min(self._made, 32) - 1))
        part_s = pause_s * random.uniform(0.5, 1.0)  # noqa: S311
        if isinstance(error, BusyError) and error.retry_after_s:
            part_s += error.retry_after_s
        if part_s >= self._ends_s - self._clock():
            raise error
        return part_s
