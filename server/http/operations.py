"""Routes for operators and monitoring: probes, metrics, models."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, assert_never

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from starlette.status import HTTP_503_SERVICE_UNAVAILABLE

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
from server.exposition import OPENMETRICS, exposition
from server.http import candidates
from server.http.candidates import Canary, Shadow
from server.http.fields import field
from server.http.responses import quality
from server.repository import Catalogue, ModelKey
from server.serving.loads import State
from server.serving.service import Service


class Calibration(BaseModel):
    """A model's calibration, as measured on held-out images."""

    temperature: float
    expected_calibration_error: float
    most_coverage: float
    """largest value that `coverage` may ask for"""
    keep_known: float
    """share of images of known classes that `reject` should let pass"""


class Model(BaseModel):
    """One served version of a single network."""

    name: str
    version: int
    default: bool
    state: State
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
    """None: the model is not calibrated, and supports neither `coverage` nor `reject`"""
    weights_sha256: str | None
    file_sha256: str
    features: int | None
    activation_maps: tuple[int, int] | None
    shadow: Shadow | None
    """None: the model is not a shadow"""
    canary: Canary | None


class EnsembleModel(BaseModel):
    """One served version of an ensemble: several networks that answer as one."""

    name: str
    version: int
    default: bool
    state: State
    backend: Literal["ensemble"]
    members: tuple[Member, ...]
    top_k: int
    accuracy: Accuracy | None


class CascadeModel(BaseModel):
    """One served version of a cascade: each network runs only if the one before it was not sure."""

    name: str
    version: int
    default: bool
    state: State
    backend: Literal["cascade"]
    members: tuple[Stage, ...]
    top_k: int
    reference: str
    top1_agreement: Share
    accuracy: Accuracy | None
    seconds: float | None


class _Seen(NamedTuple):
    """State read in the event loop, which also changes it; another thread could read it half changed."""

    catalogue: Catalogue
    states: Mapping[ModelKey, State]
    idle: candidates.Idle


class Models(BaseModel):
    """The models that are served, and those that were refused, with the reason."""

    models: list[Model | EnsembleModel | CascadeModel]
    refused: dict[str, str]


def router(service: Service) -> APIRouter:
    """The routes, bound to one HTTP worker's service."""
    routes = APIRouter()

    async def seen() -> _Seen:
        states = {key: service.state(found) for key, found in service.catalogue.entries.items()}
        return _Seen(service.catalogue, states, candidates.idle(service))

    @routes.get("/models", summary="The served models, and those refused")
    def models(seen: Annotated[_Seen, Depends(seen)]) -> Models:
        catalogue = seen.catalogue
        known = candidates.described(catalogue, seen.idle)
        served = dict(sorted(catalogue.entries.items()))
        newest = {key.name: found for key, found in served.items()}
        default = newest.get(catalogue.default_model or "")
        refused = {str(key): refusal.reason for key, refusal in catalogue.refused.items()}
        shown = [_shown(found, found is default, seen.states[key], known.get(key)) for key, found in served.items()]
        return Models(models=shown, refused=refused)

    @routes.get("/livez", summary="Whether the process answers", response_class=PlainTextResponse)
    async def livez() -> str:
        return "ok"

    @routes.get(
        "/readyz",
        summary="Whether requests can be answered",
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
        wanted = _prefers_openmetrics(field(request.scope, b"accept") or "")
        content, media_type = exposition(service.metrics.exemplars if wanted else None)
        return Response(content, media_type=media_type, headers={"Vary": "Accept"})

    return routes


def _prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept field names OpenMetrics, and plain text with no higher quality."""
    qualities = dict(map(quality, accept.lower().split(",")))
    return 0 < qualities.get(OPENMETRICS, 0) >= qualities.get("text/plain", 0)


def _shown(
    found: Entry,
    default: bool,  # noqa: FBT001
    state: State,
    candidate: Shadow | Canary | None,
) -> Model | EnsembleModel | CascadeModel:
    match found:
        case Ensemble():
            return EnsembleModel(**found.model_dump(include=_fields(EnsembleModel)), default=default, state=state)
        case Cascade():
            return CascadeModel(**found.model_dump(include=_fields(CascadeModel)), default=default, state=state)
        case Manifest():
            return Model(
                **found.model_dump(include=_fields(Model)),
                default=default,
                state=state,
                random_weights=found.weights.random,
                calibration=_calibration(found),
                weights_sha256=found.weights.sha256,
                file_sha256=found.file.sha256,
                shadow=candidate if isinstance(candidate, Shadow) else None,
                canary=candidate if isinstance(candidate, Canary) else None,
            )
        case _:
            assert_never(found)


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
