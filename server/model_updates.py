"""Carries out what `ModelControl` decides: tells engines what to load and HTTP workers what is served, logs and counts.

`ModelControl` numbers the engines; here they also have the names of their processes.
"""

import logging
import math
from typing import assert_never

from server.announcement import Announcement
from server.children import Children
from server.control import EngineDown, EngineReady, EngineUp, Hold, Load, Loaded
from server.errors import StartupError
from server.model_control import ModelControl, TellEngine, TellWorker, TellWorkers
from server.repository import Model
from server.resources import Resources

log = logging.getLogger(__name__)


class ModelUpdates:
    """The engines as `models` knows them, and the messages to them and to the HTTP workers."""

    def __init__(
        self, resources: Resources, models: ModelControl, children: Children, announcement: Announcement
    ) -> None:
        self._resources = resources
        self._metrics = resources.metrics
        self._models = models
        self._children = children
        self._announcement = announcement
        self._numbers = {place.name: number for number, place in enumerate(resources.places)}
        self._addresses: dict[str, str] = {}  # of the engines that are ready
        self._metrics.count_refused(models.served.refused.values())

    def start_engine(self, name: str) -> None:
        """Start an engine with the models that it is to load first.

        Raises:
            OSError, EOFError: the system gives no process.
        """
        number = self._numbers[name]
        self._children.start_engine(self._resources.places[number], self._models.start_engine(number))

    def engine_ready(self, name: str, ready: EngineReady, now_s: float) -> None:
        """Note what a new engine has loaded, and its address."""
        self._addresses[name] = ready.address
        self._models.engine_ready(self._numbers[name], ready.refused, now_s, ready.measured)
        self._metrics.count_loads(name, len(ready.refused), ready.measured.values())

    def loaded(self, name: str, loaded: Loaded, now_s: float) -> None:
        """Note that an engine has loaded a model, or refused it."""
        found = loaded.measured
        self._models.loaded(self._numbers[name], loaded.model_id, loaded.refusal, now_s, found)
        self._metrics.count_loads(name, loaded.refusal is not None, [found] if found else [])

    def engine_ended(self, name: str, now_s: float) -> None:
        """Note that an engine has ended."""
        self._metrics.ended(name)
        self._addresses.pop(name, None)
        self._models.engine_ended(self._numbers[name], now_s)

    def engine_state(self, name: str, *, recovering: bool) -> EngineUp | EngineDown:
        """What HTTP workers are to know of an engine; `recovering`: requests wait for one that is down."""
        number = self._numbers[name]
        if name in self._addresses:
            return EngineUp(number, self._addresses[name], self._models.held(number))
        return EngineDown(number, recovering)

    def send(self) -> None:
        """Send the messages that are due.

        Raises:
            StartupError: a model needs larger slots than there are.
        """
        before = self._models.serve.catalogue
        steps = self._models.steps()
        for step in steps:
            match step:
                case TellEngine(number, message):
                    name = self._resources.places[number].name
                    if isinstance(message, Load):
                        self._check_room(message.model)
                    elif key := self._models.key_of(message.model_id):
                        log.info("unloading %s from %s to make room for others", key, name)
                        self._metrics.evictions.inc()
                    self._children.tell_engine(name, message)
                case TellWorkers(message):
                    self._children.tell_workers(message)
                    if isinstance(message, Hold):
                        continue  # the catalogue is the same
                    self._metrics.count_refused(message.catalogue.refused.values())
                    self._announcement.update(before)
                case TellWorker(name, changed):
                    self._children.tell_worker(name, changed)
                case _:
                    assert_never(step)
        if steps or not self._announcement.due:
            self._metrics.count_models(self._models.states)

    def _check_room(self, model: Model) -> None:
        """Check a model that could not be read when the slots were made, so that nothing was known of its size.

        Raises:
            StartupError: the slots are too small for it; they are larger if the server is started again.
        """
        needed_bytes = math.prod(model.manifest.input_shape)
        if not self._announcement.made and needed_bytes > self._resources.slots.slot_bytes:
            raise StartupError(f"{model.key} can now be read, but needs more memory than was reserved: start again")
