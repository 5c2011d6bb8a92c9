"""One process's serving state, and the path of every image through it, for all transports."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from models.manifest import Entry
from server import tracing
from server.control import Change
from server.engine.classes import Classes
from server.engine.decoding import Image
from server.errors import Code, ServiceError
from server.keys import Keys
from server.metrics import Metrics
from server.placement import Place
from server.repository import Catalogue, Model
from server.serving.buffers import Buffers
from server.serving.cache import Cache, digest_of
from server.serving.canaries import Canaries
from server.serving.cascade import Pace, descend
from server.serving.classifier import Classifier
from server.serving.drawing import Drawing
from server.serving.leases import Leases
from server.serving.loads import Loads, State
from server.serving.outcomes import Outcome
from server.serving.permits import Permits
from server.serving.plan import Answer, Ask, Plan
from server.serving.shadows import Shadows
from server.settings import Settings
from server.tls import Certificate


class Changes:
    """Asks the supervisor to load and unload models."""

    def __init__(self, send: Callable[[Change], None]) -> None:
        self._send = send
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[None]] = {}

    async def ask(self, name: str, action: Literal["load", "unload"]) -> None:
        """Have the supervisor load a model, as the repository has it now, or unload it; returns when that is done.

        Raises:
            ServiceError: UNKNOWN_MODEL, MODEL_REFUSED, MODEL_UNAVAILABLE.
        """
        change_id = next(self._ids)
        self._asked[change_id] = asked = asyncio.get_running_loop().create_future()
        try:
            self._send(Change(change_id, name, action))
            await asked
        finally:
            del self._asked[change_id]

    def done(self, change_id: int, error: ServiceError | None) -> None:
        """Note the supervisor's answer."""
        asked = self._asked.get(change_id)
        if asked is None or asked.done():
            return  # the caller no longer waits
        if error:
            asked.set_exception(error)
        else:
            asked.set_result(None)


@dataclass(slots=True)
class Service:
    """The state that transports share. It belongs to one event loop; only the supervisor's messages change it."""

    settings: Settings
    catalogue: Catalogue
    classifier: Classifier
    metrics: Metrics
    changes: Changes
    permits: Permits
    keys: Keys | None = None
    """None: clients need no key"""
    certificate: Certificate | None = None
    """None: no TLS"""
    places: tuple[Place, ...] = ()
    """of the engines, if they are processes"""
    loads: Loads | None = None
    """None: all models are loaded"""
    draining: bool = False
    change: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    """Set, and replaced by a new event, when the server's readiness or its models may have changed."""
    buffers: Buffers = field(init=False)
    cache: Cache = field(init=False)
    canaries: Canaries = field(init=False)
    shadows: Shadows | None = None
    """None: no model is a shadow"""
    leases: Leases = field(init=False, default_factory=Leases)
    drawing: Drawing = field(init=False)
    pace: Pace = field(init=False, default_factory=Pace)

    def __post_init__(self) -> None:
        self.buffers = Buffers(self.settings.max_body_bytes, self.settings.max_buffered_bytes)
        self.cache = Cache(self.settings.cache_entries)
        self.canaries = Canaries(self.settings, self.classifier, self.metrics)
        self.drawing = Drawing(self.settings.max_pixels)

    def changed(self) -> None:
        """Wake the tasks that wait for `change`."""
        self.change.set()
        self.change = asyncio.Event()

    def why_not_ready(self) -> str | None:
        """Why requests should not come here; None: engines have every required model, warmed up."""
        if self.draining:
            return "the server is shutting down"
        if not self.classifier.connected:
            return "the inference engine is starting or down"
        catalogue, default = self.catalogue, self.catalogue.default_model
        served = {key.name for key in catalogue.entries}
        must_be_there = self.settings.models or ([default] if default else [])
        missing = [name for name in must_be_there if name not in served | catalogue.unloaded]
        if missing:
            return f"not served: {', '.join(missing)}; GET /models says why"
        if not served and (catalogue.refused or not catalogue.unloaded):
            return "no model is served; GET /models says why"
        needed = [catalogue.members(catalogue.resolve(name, None)) for name in must_be_there if name in served]
        if homeless := {model.key for models in needed for model in models if not self.can_answer(model.manifest)}:
            names = ", ".join(map(str, sorted(homeless)))
            return f"no inference engine that has {names} is there; {self.away}"
        return None

    def state(self, entry: Entry) -> State:
        """The load state of a model, or of all its members together."""
        ids = [model.id for model in self.catalogue.members(entry)]
        if self.loads and (state := self.loads.state(ids)) != "loaded":
            return state
        return "loaded" if all(map(self.classifier.has, ids)) else "loading"

    def can_answer(self, entry: Entry) -> bool:
        """Whether a running engine has the model, or will load it for a request."""
        return self.state(entry) == "loaded" or bool(self.loads and self.classifier.connected)

    @property
    def away(self) -> str:
        """Which engines are down, with their devices; empty if none is."""
        away = ", ".join(str(self.places[number]) for number in self.classifier.away if self.places)
        return away and f"not there: {away}"

    def shed(self, permits: int = 1, within_s: float = math.inf) -> None:
        """Refuse a request, before its body is read, if its images could not be admitted now.

        With a cache, this refuses nothing: only the image can tell whether it needs a permit.

        Raises:
            ServiceError: as `Classifier.check_admission`.
        """
        if not self.cache:
            self.classifier.check_admission(permits, within_s)

    def plan(self, ask: Ask) -> Plan:
        """Plan how the models served now answer an ask.

        Raises:
            ServiceError: UNKNOWN_MODEL, MODEL_UNAVAILABLE.
        """
        return Plan.of(ask, self.catalogue, self.settings)

    def admit(self, ask: Ask, outcome: Outcome, *, patient: bool = False) -> Plan:
        """Plan a request whose body is still to be read, if its images could be admitted now.

        A `patient` request waits for permits that others hold.

        Raises:
            ServiceError: as `plan` and `shed`.
        """
        plan = self.plan(ask)
        outcome.model = plan.labels
        try:
            self.shed(plan.permits, plan.within_s(time.monotonic()))
        except ServiceError as error:
            if not (patient and error.code is Code.QUEUE_FULL):
                raise
        return plan

    async def classify(self, plan: Plan, image: Image, received_s: float, *, patient: bool = False) -> Answer:
        """Classify one image, whose last byte arrived at `received_s` of the monotonic clock.

        If the catalogue has changed since, the image is planned again. A `patient` caller waits for permits that others
        hold; for any other, their lack is an error. Cancelling the call gives the work up.

        Raises:
            ServiceError: the model has gone, or as `Classifier.classify`.
        """
        # Features and maps may be large, and clients seldom ask for them twice: they are not remembered.
        remember = self.cache and not plan.ask.include
        digest = await digest_of(image) if remember and isinstance(image, bytes) else None
        while True:
            try:
                return await self._answer(plan, image, digest, received_s, patient=patient)
            except ServiceError as error:
                if not (patient and error.code is Code.QUEUE_FULL):
                    if plan.instead is None or not self.canaries.passes_back(plan, error):
                        raise
                    plan = plan.instead
                    continue
            await self.permits.retry()

    async def _answer(
        self, plan: Plan, image: Image, digest: bytes | None, received_s: float, *, patient: bool
    ) -> Answer:
        if plan.catalogue is not self.catalogue:  # it has changed, perhaps during the upload
            plan = self.plan(plan.ask)._replace(instead=plan.instead)
        ids = tuple(member.id for member in plan.members)
        ask, key = plan.ask, None
        if digest and ask.top_k is not None:
            asked = (plan.entry.fingerprint, *ids) if plan.stages else ids  # the fingerprint tells by which rule
            key = digest, asked, ask.top_k, int(ask.crops), ask.coverage, ask.reject
        if key and (remembered := self.cache.get(key)):
            self.metrics.cache_hits.labels(*plan.labels).inc()
            return Answer(plan, remembered, time.monotonic() - received_s)
        if self.loads and not self.loads.begin(ids):
            await self._wait_until_loaded(self.loads, ids, plan.deadline_s(received_s), patient=patient)
            return await self._answer(plan, image, digest, received_s, patient=patient)
        with self.leases.on(ids):
            classes = await self._ask_members(plan, image, plan.deadline_s(received_s))
        self.metrics.count_decoding(plan.labels, classes.decode_wait_s, classes.decode_s)
        if self.shadows and plan.catalogue.candidates.shadows:
            self.shadows.offer(plan, image, classes)
        if key:
            if not classes.cut_short:
                self.cache.put(key, classes)
            self.metrics.cache_misses.labels(*plan.labels).inc()
        return Answer(plan, classes, time.monotonic() - received_s)

    async def _wait_until_loaded(self, loads: Loads, ids: Sequence[str], deadline_s: float, *, patient: bool) -> None:
        """Return once these models are loaded, or the catalogue has changed."""
        catalogue, started_s = self.catalogue, time.monotonic()
        try:
            while self.catalogue is catalogue and not loads.begin(ids):
                await loads.wait(ids, self.change, deadline_s, patient=patient)
        finally:
            self.metrics.load_wait.add(time.monotonic() - started_s)

    async def _ask_members(self, plan: Plan, image: Image, deadline_s: float) -> Classes:
        """Ask all members about all crops at the same time; the first failure fails the request.

        Members of a cascade are asked one after another, as far as needed.
        """
        if plan.stages:
            return await descend(plan, image, deadline_s, self.classifier, self.pace, self.metrics)
        if len(plan.members) == 1:
            return plan.answer(await self._ask(plan, plan.members[0], image, deadline_s))
        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(self._ask(plan, member, image, deadline_s)) for member in plan.members]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return plan.answer([answer for task in asked for answer in task.result()])

    async def _ask(self, plan: Plan, model: Model, image: Image, deadline_s: float) -> list[Classes]:
        """The answers of one member, one for each crop."""
        top_k, include = plan.question
        answers = await self.classifier.classify(
            image, model, top_k, deadline_s, crops=plan.ask.crops, priority=plan.priority, include=include
        )
        tracing.note_stages(answers, model.key)
        return answers
