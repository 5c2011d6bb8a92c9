"""What the routes work with: the settings, the models, the engine client and the metrics of one HTTP worker."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from server.control import Change
from server.engine.client import EngineClient
from server.errors import ServiceError
from server.http.cache import Cache
from server.http.places import Places
from server.http.uploads import Uploads
from server.keys import Keys
from server.metrics import Metrics
from server.repository import Catalogue
from server.settings import Settings
from server.tls import Certificate


class Changes:
    """Asks the supervisor to load and unload models."""

    def __init__(self, send: Callable[[Change], None]) -> None:
        self._send = send
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[None]] = {}

    async def ask(self, name: str, action: Literal["load", "unload"]) -> None:
        """Have a model loaded, as the repository has it by now, or unloaded; returns when that is done.

        Raises:
            ServiceError: UNKNOWN_MODEL, MODEL_REFUSED.
        """
        change_id = next(self._ids)
        self._asked[change_id] = asked = asyncio.get_running_loop().create_future()
        try:
            self._send(Change(change_id, name, action))
            await asked
        finally:
            del self._asked[change_id]

    def done(self, change_id: int, error: ServiceError | None) -> None:
        """The supervisor's answer."""
        asked = self._asked.get(change_id)
        if asked is None or asked.done():
            return  # who asked has gone
        if error:
            asked.set_exception(error)
        else:
            asked.set_result(None)


@dataclass(slots=True)
class Service:
    """One HTTP worker's state. Only the supervisor's messages change it."""

    settings: Settings
    catalogue: Catalogue
    client: EngineClient
    uploads: Uploads
    metrics: Metrics
    changes: Changes
    places: Places
    cache: Cache
    keys: Keys | None = None
    """None: anybody may do anything"""
    certificate: Certificate | None = None
    """None: no TLS"""
    draining: bool = False

    def why_not_ready(self) -> str | None:
        """None where the engine is there and every model that must be there has run its warm-up."""
        if self.draining:
            return "the server is shutting down"
        if not self.client.connected:
            return "the inference engine is starting or down"
        served = {key.name for key in self.catalogue.entries}
        default = self.catalogue.default_model
        must_be_there = self.settings.models or ([default] if default else [])
        missing = [name for name in must_be_there if name not in served | self.catalogue.unloaded]
        return f"not served: {', '.join(missing)}; GET /models says why" if missing else None
