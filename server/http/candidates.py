"""What `GET /models` reports about shadows and canaries."""

from collections.abc import Mapping

from pydantic import BaseModel

from models.manifest import Share
from server.candidates import Candidate
from server.repository import Catalogue, ModelKey
from server.serving.evidence import Answered, Compared, Evidence, why_idle
from server.serving.service import Service

Idle = Mapping[ModelKey, str | None]
"""Each served candidate, and why it gets no requests; None: it gets its share."""


class Shadow(BaseModel):
    """How a shadow's answers compare with those of the model it may replace; see docs/guides/rollout.md."""

    of: str
    of_version: int | None
    """the newest, which the shadow is compared with; None: that model is not served"""
    share: float
    idle: str | None
    """why it gets no images now; None: it gets its share"""
    images: int
    """answered by both models"""
    agreed: int
    """with the same best class"""
    agreement: Share | None
    """None: no images yet"""
    dropped: int
    """images skipped for lack of time or slots"""
    failed: int
    timed_images: int
    """images that both models ran in batches of the same size; the times are means over these"""
    inference_ms: float | None
    inference_ms_of_main: float | None


class Canary(BaseModel):
    """How many requests a canary answered for the model it may replace; see docs/guides/rollout.md."""

    of: str
    share: float
    idle: str | None
    """why it gets no requests now; None: it gets its share"""
    asked: int
    passed_back: int
    """requests that the main model answered because the canary could not"""


def idle(service: Service) -> Idle:
    """The state of each candidate. Call in the event loop only."""
    found = service.catalogue.candidates.by_key
    return {key: why_idle(service, candidate) for key, candidate in found.items()}


def described(catalogue: Catalogue, idle: Idle) -> dict[ModelKey, Shadow | Canary]:
    """What is known about each candidate. Reads files, so not for the event loop."""
    found: dict[ModelKey, Shadow | Canary] = {}
    if not idle:
        return found
    evidence = Evidence()
    for key in catalogue.candidates.by_key.keys() & idle.keys():
        candidate = catalogue.candidates.by_key[key]
        version = max(catalogue.versions.get(candidate.main, ()), default=None)
        if candidate.role == "shadow":
            found[key] = _shadow(candidate, version, idle[key], evidence.of_shadow(candidate, version))
        else:
            found[key] = _canary(candidate, idle[key], evidence.of_canary(candidate))
    return found


def _shadow(candidate: Candidate, version: int | None, idle: str | None, compared: Compared) -> Shadow:
    agreement = None
    if compared.images:
        low, high = compared.interval
        agreement = Share(share=compared.agreed / compared.images, low=low, high=high)
    return Shadow(
        of=candidate.main,
        of_version=version,
        share=candidate.share,
        idle=idle,
        images=compared.images,
        agreed=compared.agreed,
        agreement=agreement,
        dropped=compared.dropped,
        failed=compared.failed,
        timed_images=compared.timed,
        inference_ms=_ms(compared.seconds),
        inference_ms_of_main=_ms(compared.main_seconds),
    )


def _canary(candidate: Candidate, idle: str | None, answered: Answered) -> Canary:
    return Canary(of=candidate.main, share=candidate.share, idle=idle, **answered._asdict())


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
