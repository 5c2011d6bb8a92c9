"""What `GET /models` tells of shadows and canaries."""

from collections.abc import Mapping

from pydantic import BaseModel

from models.manifest import Share
from server.candidates import Candidate
from server.repository import Catalogue, ModelKey
from server.serving.evidence import Answered, Compared, Evidence, why_idle
from server.serving.service import Service

Idle = Mapping[ModelKey, str | None]
"""Of the candidates that are served, why each gets nothing; None: it gets its share."""


class Shadow(BaseModel):
    """What a model says of the images of another that it may replace; see docs/guides/rollout.md."""

    of: str
    of_version: int | None
    """the newest, with which it is compared; None: it is not served"""
    share: float
    idle: str | None
    """why it gets no images now; None: it gets its share"""
    images: int
    """that both have answered"""
    agreed: int
    """with the same best class"""
    agreement: Share | None
    """None: of no images"""
    dropped: int
    """images for which there was no time or place"""
    failed: int
    timed_images: int
    """that both ran in batches of one size; the times are means of these"""
    inference_ms: float | None
    inference_ms_of_main: float | None


class Canary(BaseModel):
    """What a model has answered of the requests for another that it may replace; see docs/guides/rollout.md."""

    of: str
    share: float
    idle: str | None
    """why it is asked nothing now; None: it is asked its share"""
    asked: int
    passed_back: int
    """that the other answered, as this one could not"""


def idle(service: Service) -> Idle:
    """What only the event loop may ask."""
    found = service.catalogue.candidates.by_key
    return {key: why_idle(service, candidate) for key, candidate in found.items()}


def described(catalogue: Catalogue, idle: Idle) -> dict[ModelKey, Shadow | Canary]:
    """All that is known of each candidate, from files: not in an event loop."""
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
