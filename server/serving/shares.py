"""Decides which requests a candidate gets, and which candidates rest for a while; pure, without a clock."""

_ROUNDING = 1e-9
"""Tolerance when comparing with one, as sums of floating-point numbers drift."""


class Shares:
    """Gives each candidate its share of the requests: evenly spread, not at random, and exact to within one."""

    def __init__(self) -> None:
        self._owed: dict[str, float] = {}  # requests owed to each candidate, by name; less than one

    def takes(self, candidate: str, share: float) -> bool:
        """Whether the candidate gets this request, with `share` as its share of all."""
        owed = self._owed.get(candidate, 0.0) + share
        taken = owed >= 1 - _ROUNDING
        self._owed[candidate] = owed - taken
        return taken


class Rests:
    """Candidates that have caused failures, and get nothing for a while."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, str]] = {}  # by model id: end of the rest, and its reason

    def begin(self, model: str, now_s: float, seconds: float, reason: str) -> None:
        """Let a model rest for this many seconds."""
        self._until = {each: rest for each, rest in self._until.items() if rest[0] > now_s}
        self._until[model] = now_s + seconds, reason

    def reason(self, model: str, now_s: float) -> str | None:
        """Why a model rests; None: it does not."""
        until_s, reason = self._until.get(model, (0.0, ""))
        return reason if now_s < until_s else None
