"""Which models are loaded, where not all are, and the requests of one process that wait for others to be."""

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
    """What the supervisor says of models, and what it is told of them, by their ids. It belongs to one event loop."""

    def __init__(
        self, send: Callable[[Demand], None], running: Callable[[], Iterable[str]], *, most_waiting: int
    ) -> None:
        """`send` tells the supervisor; `running` are the models that requests are under way for."""
        self._send = send
        self._running = running
        self._usable: Set[str] = frozenset()
        self._loading: Mapping[str, float] = {}
        self._most_waiting = most_waiting
        self._waiters = 0
        self._waiting: Counter[str] = Counter()
        self._used: dict[str, None] = {}  # since it was last told, the newest at the end
        self._told: frozenset[str] = frozenset()
        self._telling = False

    def update(self, usable: Set[str], loading: Mapping[str, float]) -> None:
        """Requests may begin with these from now on; those are being loaded, which takes so many seconds each."""
        self._usable, self._loading = usable, loading

    def state(self, models: Iterable[str]) -> State:
        """Of a model, or of all that one is made of."""
        missing = [model for model in models if model not in self._usable]
        if not missing:
            return "loaded"
        return "loading" if any(one in self._loading or self._waiting[one] for one in missing) else "unloaded"

    def begin(self, models: Sequence[str]) -> bool:
        """Whether a request may: all these are loaded. They stay while it holds a lease on them, taken at once."""
        for model in models:
            self._used.pop(model, None)
            self._used[model] = None
        return all(model in self._usable for model in models)

    async def wait(self, models: Sequence[str], change: asyncio.Event, deadline_s: float, *, patient: bool) -> None:
        """Have these loaded, and wait for a `change`; it may be another one.

        Raises:
            ServiceError: QUEUE_FULL unless `patient`, or DEADLINE_EXCEEDED.
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
        """Tell the supervisor what is waited for and was used, if there is anything new."""
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
        """Once everybody who was woken has looked: most waits end and begin again."""
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
