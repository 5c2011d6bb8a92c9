"""Shadows: candidates that classify images again after another model has answered them, to compare the two.

    answered ─▶ offered ─▶ dropped, or waits ─▶ decoded, run, compared ─▶ agreed or disagreed
                                                        └───────────────▶ failed, or dropped as too late

No client waits for a shadow's answer, so it takes nothing that a request might need: it has a slot, a decoder thread
and connections to the engines of its own (`server.engine.background`), and engines run it when nothing else waits.
`Agenda` decides about each image, without clock or I/O; `Shadows` carries the decisions out.
"""

import asyncio
import logging
import time
from collections import deque
from enum import Enum, auto
from typing import NamedTuple, assert_never

from models.manifest import Entry
from server.candidates import Candidate
from server.engine.classes import Classes
from server.engine.decoding import Image
from server.engine.scheduler import Priority
from server.errors import Code, ServiceError
from server.metrics import Metrics
from server.serving.classifier import Classifier
from server.serving.leases import Leases
from server.serving.plan import Plan
from server.serving.shares import Rests, Shares

MOST_IMAGES, MOST_BYTES = 16, 32 * 2**20
"""Most compressed images, and their most bytes, that wait for shadows in one HTTP worker; further ones are dropped."""
PATIENCE_S = 10.0
"""An image that is not compared within this time is dropped, as the server is busy."""
DOWN_REST_S = 60.0
"""How long all shadows rest after an engine has ended, whatever the reason."""
CRASH_REST_S = 3600.0
"""How long a shadow rests after it crashed an engine. Each HTTP worker finds that out for itself."""
_LATE = frozenset({Code.DEADLINE_EXCEEDED, Code.ENGINE_UNAVAILABLE, Code.QUEUE_FULL, Code.OVERLOADED})

log = logging.getLogger(__name__)


class Fate(Enum):
    """What happens to an image that is offered to a shadow."""

    NOT_MEANT = auto()
    """It is not in the shadow's share, or the shadow is idle."""
    DROPPED = auto()
    WAITS = auto()


class Agenda:
    """Decides which images the shadows of one HTTP worker get, and counts those that wait."""

    def __init__(self) -> None:
        self._shares = Shares()
        self._rests = Rests()
        self._all_rest_until_s = 0.0
        self._images = self._bytes = 0

    def offered(self, shadow: Candidate, size_bytes: int, now_s: float, *, is_loaded: bool) -> Fate:
        """Decide about an image that the shadow's main model has answered; if it waits, call `taken` later."""
        if not self._shares.takes(shadow.name, shadow.share):
            return Fate.NOT_MEANT
        if not is_loaded or self.why_idle(shadow, now_s):
            return Fate.NOT_MEANT
        if self._images >= MOST_IMAGES or self._bytes + size_bytes > MOST_BYTES:
            return Fate.DROPPED
        self._images += 1
        self._bytes += size_bytes
        return Fate.WAITS

    def taken(self, size_bytes: int) -> None:
        """Note that one of the waiting images does not wait any more."""
        self._images -= 1
        self._bytes -= size_bytes

    def why_idle(self, shadow: Candidate, now_s: float) -> str | None:
        """Why a shadow gets no images now; None: it gets its share."""
        if now_s < self._all_rest_until_s:
            return "an inference engine ended in the last minute"
        return self._rests.reason(shadow.model.id, now_s)

    def engine_ended(self, now_s: float) -> None:
        """Have all shadows rest, as an engine has ended: until it is back, requests need the others."""
        self._all_rest_until_s = now_s + DOWN_REST_S

    def crashed(self, shadow: Candidate, now_s: float) -> None:
        """Have this shadow rest, as an engine has crashed while running it."""
        reason = "an inference engine crashed in it less than an hour ago"
        self._rests.begin(shadow.model.id, now_s, CRASH_REST_S, reason)


class _Waiting(NamedTuple):
    """An image that waits for a shadow, with the main model's answer."""

    shadow: Candidate
    image: bytes
    main: Entry
    classes: Classes
    offered_s: float


class Shadows:
    """Has shadows classify images, one after another. It belongs to one event loop."""

    def __init__(self, classifier: Classifier, leases: Leases, metrics: Metrics) -> None:
        """`classifier` is the shadows' own; `leases` are shared with requests."""
        self._classifier = classifier
        self._leases = leases
        self._metrics = metrics
        self._agenda = Agenda()
        self._waiting: deque[_Waiting] = deque()
        self._working: asyncio.Task[None] | None = None

    def offer(self, plan: Plan, image: Image, classes: Classes) -> None:
        """Offer an answered image to its model's shadows. Returns at once, and never raises.

        Images with ten crops are skipped, since their answers do not compare, and pixels, since they would keep their
        request in memory.
        """
        if not isinstance(image, bytes) or plan.ask.crops != 1 or not len(classes.indices):
            return
        main = plan.entry
        for shadow in plan.catalogue.candidates.shadows.get((main.name, main.version), ()):
            now_s = time.monotonic()
            is_loaded = self._classifier.has(shadow.model.id)
            match self._agenda.offered(shadow, len(image), now_s, is_loaded=is_loaded):
                case Fate.NOT_MEANT:
                    pass
                case Fate.DROPPED:
                    self._count(shadow, main, "dropped")
                case Fate.WAITS:
                    self._waiting.append(_Waiting(shadow, image, main, classes, now_s))
                    if self._working is None:
                        self._working = asyncio.create_task(self._work())
                case unknown:
                    assert_never(unknown)

    def engine_ended(self) -> None:
        """Note that an engine has ended."""
        self._agenda.engine_ended(time.monotonic())

    def why_idle(self, shadow: Candidate) -> str | None:
        """Why a shadow gets no images now; None: it gets its share."""
        if not self._classifier.has(shadow.model.id):
            return "no running inference engine has it"
        return self._agenda.why_idle(shadow, time.monotonic())

    async def _work(self) -> None:
        """Classify and compare images until none waits."""
        try:
            while self._waiting:
                one = self._waiting.popleft()
                self._agenda.taken(len(one.image))
                self._count(one.shadow, one.main, await self._outcome(one))
        finally:
            self._working = None

    async def _outcome(self, one: _Waiting) -> str:
        shadow, deadline_s = one.shadow, one.offered_s + PATIENCE_S
        if not self._classifier.has(shadow.model.id):  # unloaded meanwhile
            return "dropped"
        if time.monotonic() >= deadline_s or self._agenda.why_idle(shadow, time.monotonic()):
            return "dropped"
        try:
            with self._leases.on((shadow.model.id,)):
                (answer,) = await self._classifier.classify(
                    one.image, shadow.model, 1, deadline_s, priority=Priority.SHADOW
                )
        except ServiceError as error:
            if error.code is Code.ENGINE_CRASHED:
                self._agenda.crashed(shadow, time.monotonic())
            return "dropped" if error.code in _LATE else "failed"
        except Exception:
            log.exception("%s could not be asked about an image as a shadow", shadow.model.key)
            return "failed"
        if answer.batch_size == one.classes.batch_size:  # else the times would compare the batches, not the models
            for model, seconds in (("main", one.classes.inference_s), ("shadow", answer.inference_s)):
                self._metrics.shadow_inference.labels(*_labels(shadow, one.main), model).observe(seconds)
        its, mains = shadow.model.manifest.labels[answer.indices[0]], one.main.labels[one.classes.indices[0]]
        return "agreed" if its == mains else "disagreed"

    def _count(self, shadow: Candidate, main: Entry, outcome: str) -> None:
        self._metrics.shadows.labels(*_labels(shadow, main), outcome).inc()


def _labels(shadow: Candidate, main: Entry) -> tuple[str, str, str, str]:
    found = shadow.model.manifest
    return found.name, str(found.version), main.name, str(main.version)
