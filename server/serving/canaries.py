"""Canaries: candidates that answer a share of another model's requests, to prove that they can replace it.

If a canary cannot answer a request, the model that the request names answers it; the client does not notice.
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
"""How long the HTTP worker that saw a canary fail sends it no more requests."""
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
"""Failures that may be the canary's fault; any other would fail with the main model, too."""


class Canaries:
    """Chooses which of one process's requests a canary answers. It belongs to one event loop."""

    def __init__(self, settings: Settings, classifier: Classifier, metrics: Metrics) -> None:
        self._settings = settings
        self._classifier = classifier
        self._metrics = metrics
        self._shares = Shares()
        self._rests = Rests()

    def chosen(self, plan: Plan, image: Image) -> Plan:
        """The plan for answering a request: the canary's, for its share of the requests that name no version.

        Call it once for each request, after all of it has arrived; `image` is one of its images.
        """
        canary = plan.catalogue.candidates.canaries.get(plan.entry.name)
        if canary is None or plan.ask.version is not None or not self._shares.takes(canary.name, canary.share):
            return plan
        found = self._plan(canary, plan, image)
        self._count(canary, "asked" if found else "passed_back")
        return found or plan

    def why_idle(self, canary: Candidate, plan: Plan) -> str | None:
        """Why the canary cannot answer requests for the model of this plan; None: as far as is known, it can."""
        if not self._classifier.has(canary.model.id):
            return "no running inference engine has it"
        if len(canary.model.manifest.labels) != len(plan.entry.labels):
            return f"it has {len(canary.model.manifest.labels)} classes, but {canary.main} has {len(plan.entry.labels)}"
        return self._rests.reason(canary.model.id, time.monotonic())

    def passes_back(self, plan: Plan, error: ServiceError) -> bool:
        """Whether the main model must answer after this failure of a canary's plan."""
        if error.code not in _CANNOT:
            return False
        canary = plan.members[0]
        if error.code in _HARMFUL:
            reason = f"it has just failed in this HTTP worker, and is left alone for a minute: {error.detail}"
            self._rests.begin(canary.id, time.monotonic(), REST_S, reason)
        self._metrics.canaries.labels(*plan.labels, "passed_back").inc()
        return True

    def _plan(self, canary: Candidate, plan: Plan, image: Image) -> Plan | None:
        """The canary's plan for the same request; None: the canary cannot answer it."""
        if self.why_idle(canary, plan):
            return None
        if not isinstance(image, bytes) and image.shape != canary.model.manifest.input_shape:
            return None
        try:
            found = Plan.of(plan.ask._replace(model=canary.name), plan.catalogue, self._settings)
        except ServiceError:  # the canary lacks features, or is not calibrated
            return None
        return found._replace(priority=plan.priority, timeout_s=plan.timeout_s, instead=plan)

    def _count(self, canary: Candidate, outcome: str) -> None:
        found = canary.model.manifest
        self._metrics.canaries.labels(found.name, str(found.version), outcome).inc()
