"""A separate path to the engines for work no client waits for, so that it takes nothing from requests."""

import math
from collections.abc import Sequence, Set

import numpy as np

from models.manifest import CropCount
from server.engine.classes import Classes, Extras, Follow
from server.engine.decoding import Decode, Decoders, Image
from server.engine.remote import RemoteEngine
from server.engine.scheduler import Priority
from server.repository import Model
from server.slots import Slots


class Background:
    """A `Classifier` for one image at a time, with a slot, a thread and connections that no request uses.

    Until `want` is called, it has neither thread nor connection. An image that crashed an engine is not tried again.
    """

    def __init__(self, slots: Slots, slot: int, decode: Decode, engines: int) -> None:
        """Use this one slot, and a decoder thread of the lowest priority."""
        self._decoders = Decoders(decode, 1, last=True)
        self._engine = RemoteEngine(
            slots,
            range(slot, slot + 1),
            self._decoders,
            lambda _: None,
            work_s=np.zeros((1, engines)),
            most_crashes=1,
        )
        self._wanted = False
        self._up: dict[int, tuple[str, Set[str]]] = {}  # addresses and models of the engines that are up
        self._connected: set[int] = set()

    @property
    def connected(self) -> bool:
        """See `Classifier`."""
        return self._engine.connected

    @property
    def away(self) -> Sequence[int]:
        """See `Classifier`."""
        return self._engine.away

    def has(self, model: str) -> bool:
        """See `Classifier`."""
        return self._engine.has(model)

    def check_admission(self, permits: int = 1, within_s: float = math.inf) -> None:
        """See `Classifier`."""
        self._engine.check_admission(permits, within_s)

    async def classify(
        self,
        image: Image,
        model: Model,
        top_k: int | None,
        deadline_s: float,
        *,
        crops: CropCount = 1,
        priority: Priority = Priority.NORMAL,
        follow: Follow | None = None,
        include: Extras = Extras.NONE,
    ) -> list[Classes]:
        """See `Classifier`."""
        return await self._engine.classify(
            image, model, top_k, deadline_s, crops=crops, priority=priority, follow=follow, include=include
        )

    def hold(self, models: Sequence[Set[str]], usable: Set[str] | None = None) -> None:
        """Update the ids of the models that each engine has; None: all of them are `usable`."""
        self._engine.hold(models, usable)
        self._up = {engine: (address, models[engine]) for engine, (address, _) in self._up.items()}

    def want(self) -> None:
        """Connect to all engines that are up, and to those that come up later."""
        self._wanted = True
        for engine in self._up.keys() - self._connected:
            self._connect(engine)

    def engine_up(self, engine: int, address: str, models: Set[str]) -> None:
        """Note a new engine, with these models."""
        self._up[engine] = address, models
        if self._wanted:
            self._connect(engine)

    def engine_down(self, engine: int, *, recovering: bool) -> None:
        """Note that an engine is gone."""
        self._up.pop(engine, None)
        self._connected.discard(engine)
        self._engine.engine_down(engine, recovering=recovering)

    def close(self) -> None:
        """Disconnect from the engines."""
        self._engine.close()
        self._decoders.close(wait=False)

    def _connect(self, engine: int) -> None:
        if self._engine.engine_up(engine, *self._up[engine]):
            self._connected.add(engine)
