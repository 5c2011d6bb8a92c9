"""How long an answer takes, by how many images are under way: what tells early that a deadline cannot be met."""

ALPHA, BETA, MARGIN = 1 / 8, 1 / 4, 4
"""Weights of the newest measurement and deviations of margin: how TCP predicts round trips (RFC 6298, 2.3)."""


class Pace:
    """Learns the time that each place in line adds, and how much it varies."""

    def __init__(self) -> None:
        self._mean_s = 0.0  # for each place
        self._deviation_s = 0.0  # of answers from what was expected of them

    def observe(self, places: int, seconds: float) -> None:
        """Learn that an image took `seconds` from admission to answer, `places` being under way with it included."""
        if not self._mean_s:
            self._mean_s = seconds / places
        self._deviation_s += BETA * (abs(seconds - places * self._mean_s) - self._deviation_s)
        self._mean_s += ALPHA * (seconds / places - self._mean_s)

    def predict_s(self, places: int) -> float:
        """How long an image takes, almost certainly, that is the last of `places`; 0 where nothing is known."""
        return places * self._mean_s + MARGIN * self._deviation_s
