"""Image classification in the format of Hugging Face's inference endpoints: `POST /`, `POST /models/NAME`."""

import time
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta

from models.manifest import MAX_TOP_K
from server.errors import Code, ServiceError
from server.http import bodies, request_ids
from server.http.disconnects import cancelled_when_gone, counted
from server.http.fields import field
from server.http.request_ids import request_id_of
from server.http.uploads import Uploads
from server.serving.plan import DEFAULT_TOP_K, Ask, Plan
from server.serving.service import Service


class InputParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters sent with an image."""

    top_k: Annotated[int, Meta(ge=1, le=MAX_TOP_K)] | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class Inputs(msgspec.Struct, forbid_unknown_fields=True):
    """An image in Base64, as a JSON string."""

    inputs: str
    parameters: InputParameters = InputParameters()


def router(service: Service, uploads: Uploads) -> APIRouter:
    """The routes, bound to one HTTP worker's service."""
    routes = APIRouter()

    @routes.post("/")
    @routes.post("/models/{name}", name="classify_by")
    async def classify(request: Request, name: str | None = None) -> Response:
        ask = Ask(name)
        with counted(service.metrics) as outcome:
            bodies.check_no_query(request)
            plan = service.admit(ask, outcome)
            async with uploads.body(request) as body:
                received_s = time.monotonic()
                image = body
                kind = field(request.scope, b"content-type") or ""
                if kind.partition(";")[0].strip().lower() == "application/json":
                    asked = await bodies.decoded(body, Inputs)
                    _check(asked.parameters.function_to_apply, plan)
                    (image,) = await bodies.images([asked.inputs])
                    plan = service.plan(ask._replace(top_k=asked.parameters.top_k or DEFAULT_TOP_K))
                if not image:
                    raise ServiceError(
                        Code.EMPTY_BODY, "the request has no image; send its bytes, or their Base64 as inputs"
                    )
                plan = service.canaries.chosen(plan, image)
                with service.buffers.held(0 if image is body else len(image)):
                    async with cancelled_when_gone(request):
                        answer = await service.classify(plan, image, received_s)
            outcome.answered([answer])
        labels, classes = answer.plan.entry.labels, answer.classes
        ranked = zip(classes.indices.tolist(), classes.probabilities.tolist(), strict=True)
        shown = [{"label": labels[index].label, "score": score} for index, score in ranked]
        headers = {request_ids.HEADER: request_id_of(request)}
        return Response(msgspec.json.encode(shown), headers=headers, media_type="application/json")

    return routes


def _check(function: str | None, plan: Plan) -> None:
    """Refuse any activation other than the model's, which is part of its graph.

    Raises:
        ServiceError: INVALID_PARAMETER.
    """
    activation = plan.members[0].manifest.activation
    if function not in (None, activation):
        raise ServiceError(Code.INVALID_PARAMETER, f"function_to_apply: {plan.entry.name} applies {activation}")
