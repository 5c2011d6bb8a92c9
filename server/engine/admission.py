"""Admission control: an image needs a free permit, and a good chance of being answered in time."""

import math

from server.errors import Code, ServiceError

ALPHA, BETA, MARGIN = 1 / 8, 1 / 4, 4
"""Weights of the newest measurement, and margin in deviations: how TCP predicts round trips (RFC 6298, 2.3).

The first measurements weigh equally instead, so that a single one from a cold server does not dominate.
"""
REACH = 4
"""No prediction exceeds this multiple of the recent answer times. The first images of a burst had few images before
them, but shared the CPUs with all that came after, so their time per image is far too high.
"""


class Admission:
    """Limits the images under way to the number of permits, and learns the time that each image adds."""

    def __init__(self, permits: int) -> None:
        self._permits = permits
        self._observed = 0
        self._seconds = self._under_way = 0.0  # means; their ratio is the time per image
        self._deviation_s = 0.0  # of answers from that line

    def check(self, wanted: int, under_way: int, within_s: float = math.inf) -> None:
        """Refuse `wanted` crops, besides those `under_way`, if they could not be answered `within_s`.

        Raises:
            ServiceError: QUEUE_FULL, OVERLOADED, or INVALID_PARAMETER if they could never be admitted.
        """
        if wanted > self._permits:
            raise ServiceError(Code.INVALID_PARAMETER, "the request has more crops than the server can hold")
        if under_way + wanted > self._permits:
            raise ServiceError(Code.QUEUE_FULL, "the server is at capacity; try again later")
        # A request that finds the server idle is always tried, so that a bad estimate can be corrected.
        if under_way and self.predict_s(under_way + wanted) > within_s:
            raise ServiceError(Code.OVERLOADED, "the server is too busy to answer in time; try again later")

    def observe(self, under_way: int, seconds: float) -> None:
        """Learn that an image took `seconds` from admission to answer, admitted as the last of `under_way`."""
        self._observed += 1
        equal = 1 / self._observed
        self._seconds += max(ALPHA, equal) * (seconds - self._seconds)
        self._under_way += max(ALPHA, equal) * (under_way - self._under_way)
        error_s = abs(seconds - under_way * self._seconds / self._under_way)
        self._deviation_s += max(BETA, equal) * (error_s - self._deviation_s)

    def predict_s(self, under_way: int) -> float:
        """A safe upper estimate for an image admitted as the last of `under_way`; 0 before anything is learned."""
        if not self._observed:
            return 0.0
        return min(under_way / self._under_way, REACH) * self._seconds + MARGIN * self._deviation_s
