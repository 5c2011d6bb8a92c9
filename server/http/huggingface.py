"""Image classification as Hugging Face's inference endpoints answer it: `POST /`, `POST /models/NAME`."""

import time
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta
from starlette.requests import ClientDisconnect

from models.manifest import MAX_TOP_K
from server.errors import SHUTTING_DOWN, Code, ServiceError
from server.http import bodies, request_ids
from server.http.disconnects import cancelled_when_gone
from server.http.request_ids import request_id_of
from server.http.uploads import Uploads
from server.serving.outcomes import Outcome
from server.serving.plan import DEFAULT_TOP_K, Ask, Plan
from server.serving.service import Service


class _Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    top_k: Annotated[int, Meta(ge=1, le=MAX_TOP_K)] | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class _Inputs(msgspec.Struct, forbid_unknown_fields=True):
    inputs: str
    parameters: _Parameters = _Parameters()


def router(service: Service, uploads: Uploads) -> APIRouter:
    """The routes, bound to one HTTP worker's service. Their clients know them, so OpenAPI leaves them out."""
    routes = APIRouter(include_in_schema=False)

    @routes.post("/")
    @routes.post("/models/{name}")
    async def classify(request: Request, name: str | None = None) -> Response:
        ask = Ask(name)
        with Outcome(service.metrics, cancelled=SHUTTING_DOWN, gone=ClientDisconnect) as outcome:
            bodies.check_no_query(request)
            plan = service.admit(ask, outcome)
            async with uploads.body(request) as body:
                received_s = time.monotonic()
                image = body
                if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
                    asked = await bodies.decoded(body, _Inputs)
                    _check(asked.parameters.function_to_apply, plan)
                    (image,) = await bodies.images([asked.inputs])
                    plan = service.plan(ask._replace(top_k=asked.parameters.top_k or DEFAULT_TOP_K))
                if not image:
                    raise ServiceError(Code.EMPTY_BODY, "there is no image: send its bytes, or their Base64 as inputs")
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
    """Refuse another activation than the model's, which is in its graph.

    Raises:
        ServiceError: INVALID_PARAMETER.
    """
    activation = plan.members[0].manifest.activation
    if function not in (None, activation):
        raise ServiceError(Code.INVALID_PARAMETER, f"function_to_apply: {plan.entry.name} applies {activation}")
