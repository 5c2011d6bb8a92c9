"""A separate path to the engines for work no client waits for, so that it takes nothing from requests."""

from collections.abc import Sequence, Set

import numpy as np

from server.engine.decoding import Decode, Decoders
from server.engine.remote import RemoteEngine
from server.slots import Slots


class Background(RemoteEngine):
    """Classifies one image at a time, with a slot, a thread and connections that no request uses.

    Until `want` is called, it has neither thread nor connection. An image that crashed an engine is not tried again.
    """

    def __init__(self, slots: Slots, slot: int, decode: Decode, engines: int) -> None:
        """Use this one slot, and a decoder thread of the lowest priority."""
        decoders = Decoders(decode, 1, last=True)
        work_s = np.zeros((1, engines))
        super().__init__(slots, range(slot, slot + 1), decoders, lambda _: None, work_s=work_s, most_crashes=1)
        self._wanted = False
        self._up: dict[int, tuple[str, Set[str]]] = {}  # addresses and models of the engines that are up

    def hold(self, models: Sequence[Set[str]], usable: Set[str] | None = None) -> None:
        """See `RemoteEngine`."""
        super().hold(models, usable)
        self._up = {engine: (address, models[engine]) for engine, (address, _) in self._up.items()}

    def want(self) -> None:
        """Connect to all engines that are up, and to those that come up later."""
        self._wanted = True
        for engine in self._up.keys() - self._channels.keys():
            super().engine_up(engine, *self._up[engine])

    def engine_up(self, engine: int, address: str, models: Set[str]) -> bool:
        """Note a new engine with these models, and connect to it if that is wanted; False: it is not connected."""
        connected = self._wanted and super().engine_up(engine, address, models)
        self._up[engine] = address, models
        return connected

    def engine_down(self, engine: int, *, recovering: bool) -> None:
        """See `RemoteEngine`."""
        self._up.pop(engine, None)
        super().engine_down(engine, recovering=recovering)

    def close(self) -> None:
        """Disconnect from the engines, and end the decoder's thread."""
        super().close()
        self._decoders.close(wait=False)
