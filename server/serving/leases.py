"""Tracks the models that requests under way need, so that a model is only unloaded once unused."""

from collections import Counter
from collections.abc import Callable, Sequence, Set


class Leases:
    """Counts the users of each model, by id. It belongs to one event loop."""

    def __init__(self) -> None:
        self._users: Counter[str] = Counter()
        self._kept: Set[str] = frozenset()
        self._drained: Callable[[], None] | None = None

    @property
    def taken(self) -> Set[str]:
        """The models that requests under way need."""
        return self._users.keys()

    def on(self, models: Sequence[str]) -> "_Lease":
        """Hold these models until the block ends."""
        return _Lease(self, models)

    def take(self, models: Sequence[str]) -> None:
        """Hold these models until they are given back."""
        for model in models:
            self._users[model] += 1

    def give_back(self, models: Sequence[str]) -> None:
        """Release them."""
        for model in models:
            self._users[model] -= 1
            if not self._users[model]:
                del self._users[model]
        self._check()

    def when_drained(self, kept: Set[str], then: Callable[[], None]) -> None:
        """Call `then` once, as soon as no request needs a model other than those `kept`. The newest call counts."""
        self._kept, self._drained = kept, then
        self._check()

    def _check(self) -> None:
        if self._drained is not None and self._users.keys() <= self._kept:
            drained, self._drained = self._drained, None
            drained()


class _Lease:
    """A class instead of a generator, which would be slower: each request has one."""

    __slots__ = ("_leases", "_models")

    def __init__(self, leases: Leases, models: Sequence[str]) -> None:
        self._leases = leases
        self._models = models

    def __enter__(self) -> None:
        self._leases.take(self._models)

    def __exit__(self, *_: object) -> None:
        self._leases.give_back(self._models)
