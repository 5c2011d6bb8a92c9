"""With `max_loaded` or `memory_budget`: which models are loaded, and the requests that wait for others to load."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Literal

from server.control import Demand
from server.errors import Code, ServiceError

State = Literal["loaded", "loading", "unloaded"]


class Loads:
    """Knows which models are loaded, and tells the supervisor which ones requests need. It belongs to one event loop.

    Models are named by their ids.
    """

    def __init__(
        self, send: Callable[[Demand], None], running: Callable[[], Iterable[str]], *, most_waiting: int
    ) -> None:
        """`send` tells the supervisor; `running` returns the models that requests under way hold."""
        self._send = send
        self._running = running
        self._usable: Set[str] = frozenset()
        self._loading: Mapping[str, float] = {}
        self._most_waiting = most_waiting
        self._waiters = 0
        self._waiting: Counter[str] = Counter()
        self._used: dict[str, None] = {}  # since the supervisor was last told, the most recent last
        self._told: frozenset[str] = frozenset()
        self._telling = False

    def update(self, usable: Set[str], loading: Mapping[str, float]) -> None:
        """Note which models new requests may use, and how many seconds each model that is loading will take."""
        self._usable, self._loading = usable, loading

    def state(self, models: Iterable[str]) -> State:
        """State of a model, given its own id or those of all its members."""
        missing = [model for model in models if model not in self._usable]
        if not missing:
            return "loaded"
        return "loading" if any(one in self._loading or self._waiting[one] for one in missing) else "unloaded"

    def begin(self, models: Sequence[str]) -> bool:
        """Whether a request may begin, as all these models are loaded. It must take a lease on them at once.

        The models count as used. They stay loaded while the request holds its lease.
        """
        for model in models:
            self._used.pop(model, None)
            self._used[model] = None
        return all(model in self._usable for model in models)

    async def wait(self, models: Sequence[str], change: asyncio.Event, deadline_s: float, *, patient: bool) -> None:
        """Ask for these models, and wait for the next `change`, which need not be theirs.

        Raises:
            ServiceError: DEADLINE_EXCEEDED, or QUEUE_FULL unless `patient`.
        """
        if self._waiters >= self._most_waiting and not patient:
            raise ServiceError(Code.QUEUE_FULL, "too many requests wait for models to be loaded; try again later")
        missing = [model for model in models if model not in self._usable]
        self._waiters += 1
        self._waiting.update(missing)
        self._tell_soon()
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                await change.wait()
        except TimeoutError:
            raise self._too_late(missing) from None
        finally:
            self._waiters -= 1
            self._waiting.subtract(missing)
            self._tell_soon()

    def tell(self) -> None:
        """Tell the supervisor which models requests wait for and have used, if anything is new."""
        self._telling = False
        waiting = frozenset(model for model, count in self._waiting.items() if count)
        if waiting == self._told and not self._used:
            return
        for model in self._running():
            self._used.setdefault(model)
        self._told, used, self._used = waiting, tuple(self._used), {}
        self._waiting = Counter({model: self._waiting[model] for model in waiting})
        self._send(Demand(waiting, used))

    def _tell_soon(self) -> None:
        """Tell the supervisor after all woken requests have run, as most of them begin to wait again at once."""
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell_if_changed)

    def _tell_if_changed(self) -> None:
        self._telling = False
        if self._waiting.keys() != self._told or not all(self._waiting.values()):
            self.tell()

    def _too_late(self, missing: Sequence[str]) -> ServiceError:
        load_s = sum(self._loading.get(model, 1.0) for model in missing)
        detail = "the model was not loaded within the time limit; try again, it is likely to be loaded then"
        return ServiceError(Code.DEADLINE_EXCEEDED, detail, retry_after_s=max(1, math.ceil(load_s)))
