"""Which models the requests under way need: the proof that nobody needs one that is gone from the catalogue."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Set
from contextlib import contextmanager


class Leases:
    """Counts the users of each model, by id. It belongs to one event loop."""

    def __init__(self) -> None:
        self._users: Counter[str] = Counter()
        self._kept: Set[str] = frozenset()
        self._drained: Callable[[], None] | None = None

    @contextmanager
    def on(self, models: Iterable[str]) -> Generator[None]:
        """Need these models until the block ends."""
        models = tuple(models)
        self._users.update(models)
        try:
            yield
        finally:
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
