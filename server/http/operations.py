"""What operators and their machines ask: probes, metrics, models."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from starlette.status import HTTP_503_SERVICE_UNAVAILABLE

from models.manifest import Accuracy, Preprocessing
from server import metrics
from server.http.service import Service


class Model(BaseModel):
    """One version that is served."""

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
    weights_sha256: str | None
    file_sha256: str


class Models(BaseModel):
    """What is served, and what was refused and why."""

    models: list[Model]
    refused: dict[str, str]


def router(service: Service) -> APIRouter:
    """The routes, bound to one HTTP worker's service."""
    routes = APIRouter()

    @routes.get("/models", summary="What is served")
    def models() -> Models:
        catalogue = service.catalogue
        served = sorted(catalogue.manifests.values(), key=lambda found: (found.name, found.version))
        newest = {found.name: found for found in served}
        return Models(
            models=[
                Model(
                    **found.model_dump(include=_SHOWN),
                    default=found is newest.get(catalogue.default_model or ""),
                    random_weights=found.weights.random,
                    weights_sha256=found.weights.sha256,
                    file_sha256=found.file.sha256,
                )
                for found in served
            ],
            refused=dict(catalogue.refused),
        )

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
        return PlainTextResponse(reason or "ok", HTTP_503_SERVICE_UNAVAILABLE if reason else 200)

    @routes.get("/metrics", summary="Prometheus metrics of all processes", response_class=PlainTextResponse)
    def prometheus() -> Response:
        content, media_type = metrics.exposition()
        return Response(content, media_type=media_type)

    return routes


_SHOWN: Any = set(Model.model_fields)
