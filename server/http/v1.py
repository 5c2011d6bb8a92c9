"""KServe's first protocol, also used by TensorFlow Serving and Vertex AI: JSON, with images in Base64."""

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta
from starlette.status import HTTP_503_SERVICE_UNAVAILABLE

from models.manifest import MAX_TOP_K
from server.errors import Code, ServiceError
from server.http import bodies, request_ids
from server.http.disconnects import cancelled_when_gone, counted
from server.http.request_ids import request_id_of
from server.http.uploads import Uploads
from server.serving.plan import DEFAULT_TOP_K, Answer, Ask
from server.serving.service import Service
from server.serving.several import classify_all
from server.v2 import models

MEMBERS = ("b64", "image_bytes", "image", "data", "encoded")
"""Names that clients use for the image of an instance."""

Instance = str | dict[str, str | dict[str, str]]


class PredictParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters sent with the images."""

    top_k: Annotated[int, Meta(ge=1, le=MAX_TOP_K)] = DEFAULT_TOP_K


class Predict(msgspec.Struct, forbid_unknown_fields=True):
    """Images in Base64."""

    instances: list[Instance]
    parameters: PredictParameters = PredictParameters()


def router(service: Service, uploads: Uploads) -> APIRouter:
    """The routes, bound to one HTTP worker's service."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/models")
    async def names() -> Response:
        return _json({"models": sorted(service.catalogue.versions)})

    @routes.post("/models/{name}:predict")
    async def predict(request: Request, name: str) -> Response:
        with counted(service.metrics) as outcome:
            bodies.check_no_query(request)
            plan = service.admit(Ask(name), outcome)
            async with uploads.body(request) as body:
                received_s = time.monotonic()
                asked = await bodies.decoded(body, Predict)
                at_most = models.max_images(service, plan.entry)
                if not 1 <= len(asked.instances) <= at_most:
                    detail = f"one request may have 1 to {at_most} instances, not {len(asked.instances)}"
                    raise ServiceError(Code.INVALID_REQUEST, detail)
                images = await bodies.images([_text(each) for each in asked.instances])
                plan = service.plan(Ask(name, top_k=asked.parameters.top_k))
                with service.buffers.held(sum(map(len, images))):
                    async with cancelled_when_gone(request):
                        answers = await classify_all(service, plan, images, received_s)
            outcome.answered(answers)
        return _json({"predictions": [_shown(each) for each in answers]}, 200, request_id_of(request))

    @routes.get("/models/{name}")
    async def ready(name: str) -> Response:
        is_ready = models.is_ready(service, name, "")
        return _json({"name": name, "ready": is_ready}, 200 if is_ready else HTTP_503_SERVICE_UNAVAILABLE)

    return routes


def _text(instance: Instance) -> str:
    """The Base64 of an instance: a string, {"b64": ...}, or an object whose only member is one of these.

    Raises:
        ServiceError: INVALID_REQUEST.
    """
    inner: object = instance
    if isinstance(inner, dict) and len(inner) == 1:
        ((name, inner),) = inner.items()
        if name in MEMBERS and isinstance(inner, dict) and inner.keys() == {"b64"}:
            inner = inner["b64"]
        if name not in MEMBERS:
            inner = None
    if not isinstance(inner, str):
        detail = f'an instance must be Base64, {{"b64": Base64}}, or that as its one member: {", ".join(MEMBERS[1:])}'
        raise ServiceError(Code.INVALID_REQUEST, detail)
    return inner


def _shown(answer: Answer) -> list[dict[str, object]]:
    labels, classes = answer.plan.entry.labels, answer.classes
    ranked = zip(classes.indices.tolist(), classes.probabilities.tolist(), strict=True)
    return [{"label": labels[index].label, "score": score, "class_id": index} for index, score in ranked]


def _json(content: object, status: int = 200, request_id: str = "") -> Response:
    headers = {request_ids.HEADER: request_id} if request_id else None
    return Response(msgspec.json.encode(content), status, headers, "application/json")
