"""Counts about the candidates, over all processes: the evidence for an operator who decides to replace a model."""

from collections import defaultdict
from typing import NamedTuple

from models.intervals import Interval, clopper_pearson
from server import metrics
from server.candidates import Candidate
from server.serving.plan import Ask, Plan
from server.serving.service import Service

Key = tuple[str, ...]
"""Name and version of the candidate; for a shadow followed by those of the model that it shadows."""


class Compared(NamedTuple):
    """A shadow compared with the model that it shadows, in the versions that are served."""

    images: int
    agreed: int
    dropped: int
    failed: int
    timed: int
    """Images whose times are compared."""
    seconds: float | None
    """The shadow's mean time of inference for these."""
    main_seconds: float | None
    """The main model's."""

    @property
    def interval(self) -> Interval:
        """Confidence interval of the share of all such images on which both models agree."""
        return clopper_pearson(self.agreed, self.images)


class Answered(NamedTuple):
    """How many requests were put to a canary, and how many of its share the main model had to answer instead."""

    asked: int
    passed_back: int


class Evidence:
    """The counts at the time of its construction, which reads files: not for the event loop."""

    def __init__(self) -> None:
        self._counts: dict[Key, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for sample in metrics.samples():
            kind, found = sample.name.removeprefix("serving_"), sample.labels
            match kind:
                case "shadow_images_total" | "shadow_inference_seconds_count" | "shadow_inference_seconds_sum":
                    key: Key = found["model"], found["version"], found["main"], found["main_version"]
                    by = found.get("outcome") or f"{kind.rpartition('_')[2]} {found['by']}"
                case "canary_requests_total":
                    key, by = (found["model"], found["version"]), found["outcome"]
                case _:
                    continue
            self._counts[key][by] += sample.value

    def of_shadow(self, shadow: Candidate, main_version: int | None) -> Compared:
        """Counts of a shadow against this version of its main model; None: none is served, so all counts are 0."""
        found = self._counts[(*_labels(shadow), shadow.main, str(main_version))]
        agreed, timed = int(found["agreed"]), int(found["count shadow"])
        return Compared(
            agreed + int(found["disagreed"]),
            agreed,
            int(found["dropped"]),
            int(found["failed"]),
            timed,
            found["sum shadow"] / timed if timed else None,
            found["sum main"] / timed if timed else None,
        )

    def of_canary(self, canary: Candidate) -> Answered:
        """Counts of a canary since the server started."""
        found = self._counts[_labels(canary)]
        return Answered(int(found["asked"]), int(found["passed_back"]))


def _labels(candidate: Candidate) -> tuple[str, str]:
    found = candidate.model.manifest
    return found.name, str(found.version)


def why_idle(service: Service, candidate: Candidate) -> str | None:
    """Why a candidate gets no images or requests now, as far as this process knows; None: it gets its share.

    Call it in the service's event loop.
    """
    main = service.catalogue.versions.get(candidate.main)
    if not main:
        return f"{candidate.main} is not served"
    if not candidate.share:
        return "its share is 0"
    if candidate.role == "canary":
        if service.catalogue.candidates.canaries.get(candidate.main) is not candidate:
            return f"{candidate.main} has another canary"
        plan = Plan.of(Ask(candidate.main), service.catalogue, service.settings)
        return service.canaries.why_idle(candidate, plan)
    return service.shadows.why_idle(candidate) if service.shadows else "this server asks no shadows"
