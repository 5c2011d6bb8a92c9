"""Decides which requests a candidate gets, and which candidates rest for a while; pure, without a clock."""

_ROUNDING = 1e-9
"""What is owed may be so much less than one: sums of floating-point numbers drift."""


class Shares:
    """Gives each candidate its share of what comes: evenly spread, without chance, and exact up to one."""

    def __init__(self) -> None:
        self._owed: dict[str, float] = {}  # by name, less than one each

    def takes(self, candidate: str, share: float) -> bool:
        """Whether this one is the candidate's, to whom `share` of all is due."""
        owed = self._owed.get(candidate, 0.0) + share
        taken = owed >= 1 - _ROUNDING
        self._owed[candidate] = owed - taken
        return taken


class Rests:
    """Candidates that have done harm, and get nothing for a while."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, str]] = {}  # by the model's id: when, and why

    def begin(self, model: str, now_s: float, seconds: float, reason: str) -> None:
        """Let it rest for so many seconds."""
        self._until = {each: rest for each, rest in self._until.items() if rest[0] > now_s}
        self._until[model] = now_s + seconds, reason

    def reason(self, model: str, now_s: float) -> str | None:
        """Why it gets nothing now; None: it does."""
        until_s, reason = self._until.get(model, (0.0, ""))
        return reason if now_s < until_s else None
