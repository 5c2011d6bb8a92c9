"""What operators and their machines ask: probes, metrics, models."""

from collections.abc import Sequence
from typing import Any, Literal, assert_never

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from starlette.status import HTTP_503_SERVICE_UNAVAILABLE

from models import manifest
from models.confidence import most_coverage
from models.manifest import (
    Accuracy,
    Activation,
    Cascade,
    Ensemble,
    Entry,
    Manifest,
    Member,
    Preprocessing,
    Share,
    Stage,
)
from server.candidates import Candidate
from server.exposition import OPENMETRICS, exposition
from server.http.responses import quality
from server.repository import ModelKey
from server.serving.evidence import Compared, Evidence, why_idle
from server.serving.service import Service


class Calibration(BaseModel):
    """What is known of how sure a model may be, from held-out images."""

    temperature: float
    expected_calibration_error: float
    most_coverage: float
    """that `coverage` may ask for"""
    keep_known: float
    """share of images of the classes that `reject` is to let pass"""


class Shadow(BaseModel):
    """What a model says of the images of another that it may replace; see docs/rollout.md."""

    of: str
    of_version: int | None
    """the newest, with which it is compared; None: it is not served"""
    share: float
    idle: str | None
    """why it gets no images now; None: it gets its share"""
    images: int
    """of which both have said something"""
    agreed: int
    """on the best class"""
    agreement: manifest.Share | None
    """with its 95 % interval; None: of no images"""
    dropped: int
    """images for which there was no time or place"""
    failed: int
    timed_images: int
    """that both ran in batches of one size; of these are the mean times of the inference"""
    inference_ms: float | None
    inference_ms_of_main: float | None


class Canary(BaseModel):
    """What a model has answered of the requests for another that it may replace; see docs/rollout.md."""

    of: str
    share: float
    idle: str | None
    """why it is asked nothing now; None: it is asked its share"""
    asked: int
    passed_back: int
    """that the other answered, as this one could not"""


class Model(BaseModel):
    """One version of one network that is served."""

    name: str
    version: int
    default: bool
    architecture: str
    parameters: int
    random_weights: bool
    published_accuracy: Accuracy | None
    precision: str
    backend: str
    num_classes: int
    top_k: int
    preprocessing: Preprocessing
    activation: Activation
    calibration: Calibration | None
    """None: it is not calibrated, and answers neither `coverage` nor `reject`"""
    weights_sha256: str | None
    file_sha256: str
    features: int | None
    activation_maps: tuple[int, int] | None
    shadow: Shadow | None = None
    canary: Canary | None = None


class EnsembleModel(BaseModel):
    """One version of several networks that are served as one."""

    name: str
    version: int
    default: bool
    backend: Literal["ensemble"]
    members: tuple[Member, ...]
    top_k: int
    accuracy: Accuracy | None


class CascadeModel(BaseModel):
    """One version of several networks, each of which is asked only where the one before it was not sure."""

    name: str
    version: int
    default: bool
    backend: Literal["cascade"]
    members: tuple[Stage, ...]
    top_k: int
    reference: str
    top1_agreement: Share
    accuracy: Accuracy | None
    seconds: float | None


class Models(BaseModel):
    """What is served, and what was refused and why."""

    models: list[Model | EnsembleModel | CascadeModel]
    refused: dict[str, str]


def router(service: Service) -> APIRouter:
    """The routes, bound to one HTTP worker's service."""
    routes = APIRouter()

    @routes.get("/models", summary="What is served")
    def models() -> Models:
        catalogue = service.catalogue
        served = sorted(catalogue.entries.values(), key=lambda found: (found.name, found.version))
        newest = {found.name: found for found in served}
        default = newest.get(catalogue.default_model or "")
        refused = {str(key): refusal.reason for key, refusal in catalogue.refused.items()}
        shown = [_shown(found, found is default) for found in served]
        if catalogue.candidates.by_key:
            _add_evidence(service, shown)
        return Models(models=shown, refused=refused)

    @routes.get("/livez", summary="The process answers", response_class=PlainTextResponse)
    async def livez() -> str:
        return "ok"

    @routes.get(
        "/readyz",
        summary="Requests can be answered",
        response_class=PlainTextResponse,
        responses={HTTP_503_SERVICE_UNAVAILABLE: {"description": "why not, in one line"}},
    )
    async def readyz() -> Response:
        reason = service.why_not_ready()
        fine = f"ok; {service.away}" if service.away else "ok"
        return PlainTextResponse(reason or fine, HTTP_503_SERVICE_UNAVAILABLE if reason else 200)

    @routes.get(
        "/metrics",
        name="metrics",
        summary="Prometheus metrics of all processes",
        response_class=PlainTextResponse,
        responses={200: {"content": {OPENMETRICS: {"schema": {"type": "string"}}}}},
    )
    def prometheus(request: Request) -> Response:
        wanted = _prefers_openmetrics(request.headers.get("accept", ""))
        content, media_type = exposition(service.metrics.exemplars if wanted else None)
        return Response(content, media_type=media_type, headers={"Vary": "Accept"})

    return routes


def _prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept field names OpenMetrics, and plain text with no higher quality."""
    qualities = dict(map(quality, accept.lower().split(",")))
    return 0 < qualities.get(OPENMETRICS, 0) >= qualities.get("text/plain", 0)


def _shown(found: Entry, default: bool) -> Model | EnsembleModel | CascadeModel:  # noqa: FBT001
    match found:
        case Ensemble():
            return EnsembleModel(**found.model_dump(include=_fields(EnsembleModel)), default=default)
        case Cascade():
            return CascadeModel(**found.model_dump(include=_fields(CascadeModel)), default=default)
        case Manifest():
            return Model(
                **found.model_dump(include=_fields(Model)),
                default=default,
                random_weights=found.weights.random,
                calibration=_calibration(found),
                weights_sha256=found.weights.sha256,
                file_sha256=found.file.sha256,
            )
        case _:
            assert_never(found)


def _add_evidence(service: Service, shown: Sequence[Model | EnsembleModel | CascadeModel]) -> None:
    """Say of the candidates among these what is known of them."""
    evidence, catalogue = Evidence(), service.catalogue
    for model in shown:
        candidate = catalogue.candidates.by_key.get(ModelKey(model.name, model.version))
        if candidate is None or not isinstance(model, Model):
            continue
        idle = why_idle(service, candidate)
        if candidate.role == "canary":
            answered = evidence.of_canary(candidate)
            model.canary = Canary(of=candidate.main, share=candidate.share, idle=idle, **answered._asdict())
        else:
            of_version = max(catalogue.versions.get(candidate.main, ()), default=None)
            model.shadow = _shadow(candidate, of_version, idle, evidence.of_shadow(candidate, of_version))


def _shadow(candidate: Candidate, of_version: int | None, idle: str | None, compared: Compared) -> Shadow:
    agreement = None
    if compared.images:
        low, high = compared.interval
        agreement = manifest.Share(share=compared.agreed / compared.images, low=low, high=high)
    return Shadow(
        of=candidate.main,
        of_version=of_version,
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


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _calibration(found: Manifest) -> Calibration | None:
    known = found.confidence
    if not (known and known.held_out and known.sets and known.unknown):
        return None
    return Calibration(
        temperature=known.temperature,
        expected_calibration_error=known.held_out.after.ece,
        most_coverage=most_coverage(known.sets),
        keep_known=known.unknown.keep_known,
    )


def _fields(shown: type[BaseModel]) -> Any:
    return set(shown.model_fields)
