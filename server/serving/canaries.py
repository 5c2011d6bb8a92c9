"""Requests for one model that another answers, to show that it can: its canary.

What a canary cannot answer, the model that was asked for answers; its client does not notice.
"""

import time

from server.candidates import Candidate
from server.engine.decoding import Image
from server.errors import Code, ServiceError
from server.metrics import Metrics
from server.serving.classifier import Classifier
from server.serving.plan import Plan
from server.serving.shares import Rests, Shares
from server.settings import Settings

REST_S = 60.0
"""How long a canary that has failed gets no more requests from the HTTP worker that saw it."""
_HARMFUL = frozenset({Code.ENGINE_CRASHED, Code.INFERENCE_FAILED})
_CANNOT = _HARMFUL | {
    Code.ENGINE_UNAVAILABLE,
    Code.QUEUE_FULL,
    Code.OVERLOADED,
    Code.UNKNOWN_MODEL,
    Code.MODEL_UNAVAILABLE,
    Code.UNSUPPORTED_BY_MODEL,
    Code.NOT_CALIBRATED,
    Code.INVALID_PARAMETER,
}
"""Failures that are the canary's, or may be; the others would be the main model's as well."""


class Canaries:
    """Says which of one process's requests a canary answers. It belongs to one event loop."""

    def __init__(self, settings: Settings, classifier: Classifier, metrics: Metrics) -> None:
        self._settings = settings
        self._classifier = classifier
        self._metrics = metrics
        self._shares = Shares()
        self._rests = Rests()

    def chosen(self, plan: Plan, image: Image) -> Plan:
        """The plan by which a request is answered: the canary's for its share of those that name no version.

        To be asked once for each request, when all of it is there; `image` is one of its images.
        """
        canary = plan.catalogue.candidates.canaries.get(plan.entry.name)
        if canary is None or plan.ask.version is not None or not self._shares.takes(canary.name, canary.share):
            return plan
        found = self._plan(canary, plan, image)
        self._count(canary, "asked" if found else "passed_back")
        return found or plan

    def why_idle(self, canary: Candidate, plan: Plan) -> str | None:
        """Why it can answer nothing that is meant for the model of this plan; None: it can, for all that is known."""
        if not self._classifier.has(canary.model.id):
            return "no inference engine that is there has it"
        if len(canary.model.manifest.labels) != len(plan.entry.labels):
            return f"it has {len(canary.model.manifest.labels)} classes, and {canary.main} has {len(plan.entry.labels)}"
        return self._rests.reason(canary.model.id, time.monotonic())

    def passes_back(self, plan: Plan, error: ServiceError) -> bool:
        """Whether the main model is to answer after this failure; only of a plan that has one."""
        if error.code not in _CANNOT:
            return False
        canary = plan.members[0]
        if error.code in _HARMFUL:
            reason = f"it has just failed in this HTTP worker, and is left alone for a minute: {error.detail}"
            self._rests.begin(canary.id, time.monotonic(), REST_S, reason)
        self._metrics.canaries.labels(*plan.labels, "passed_back").inc()
        return True

    def _plan(self, canary: Candidate, plan: Plan, image: Image) -> Plan | None:
        """By which the canary answers; None: it cannot."""
        if self.why_idle(canary, plan):
            return None
        if not isinstance(image, bytes) and image.shape != canary.model.manifest.input_shape:
            return None
        try:
            found = Plan.of(plan.ask._replace(model=canary.name), plan.catalogue, self._settings)
        except ServiceError:  # without features, or not calibrated
            return None
        return found._replace(priority=plan.priority, timeout_s=plan.timeout_s, instead=plan)

    def _count(self, canary: Candidate, outcome: str) -> None:
        found = canary.model.manifest
        self._metrics.canaries.labels(found.name, str(found.version), outcome).inc()
