"""`POST /classify`: one image in, its classes out. `POST /classify/batch`: the same for several."""

import math
import time
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from models.manifest import MAX_TOP_K
from server.engine.scheduler import Priority
from server.errors import SHUTTING_DOWN, Code, ServiceError
from server.http import problems, responses
from server.http.archives import File
from server.http.disconnects import cancelled_when_gone, counting_leavers
from server.http.load_shedding import PATH, TIMEOUT_HEADER
from server.http.request_ids import request_id_of
from server.http.responses import Classification, ClassificationBatch, ImageProblem, ImageResult
from server.http.uploads import Uploads
from server.serving.outcomes import counted, counted_if_refused
from server.serving.plan import DEFAULT_TOP_K, Answer, Ask
from server.serving.service import Service
from server.serving.several import classify_each
from server.settings import PriorityName

CACHE_HEADER = "X-Cache"


class Crops(IntEnum):
    """How many parts of the image are looked at."""

    CENTRE = 1
    TEN = 10


class Parameters(BaseModel):
    """What the query says, of one image or of all images of a batch."""

    top_k: int = Field(DEFAULT_TOP_K, ge=1, le=MAX_TOP_K, description="classes wanted; at most the model's")
    model: str | None = Field(None, description="name; without it the default model")
    version: int | None = Field(None, ge=1, description="without it the newest")
    crops: Crops = Field(Crops.CENTRE, description="10: the mean over the centre, the corners and their mirrors")
    priority: PriorityName | None = Field(None, description="who goes first; without it as the model has it")


Timeout = Annotated[
    float | None,
    Field(ge=0.001, le=3600, description="seconds from here to the answer; the server's at most"),
]
_TIMEOUT: TypeAdapter[float | None] = TypeAdapter(Timeout)


class _Route(APIRoute):
    """Reads the parameters that the routes here declare by their models alone.

    FastAPI's general way to find them costs more than all the rest of such a request. It still describes them.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            where = "query"
            try:
                parameters = Parameters.model_validate(dict(request.query_params))
                where = "header"
                timeout = request.headers.get(TIMEOUT_HEADER)
                timeout_s = None if timeout is None else _TIMEOUT.validate_python(timeout)
            except ValidationError as error:
                errors = [{**each, "loc": (where, *(each["loc"] or [TIMEOUT_HEADER]))} for each in error.errors()]
                raise RequestValidationError(errors) from None
            response: Response = await self.endpoint(request, parameters, timeout_s)
            return response

        return handle


def router(service: Service, uploads: Uploads) -> APIRouter:
    """The routes, bound to one HTTP worker's service."""
    routes = APIRouter(route_class=_Route)

    @routes.post(
        PATH,
        summary="Classify an image",
        response_model=None,
        responses={
            200: {
                "description": "its classes",
                "content": responses.content(Classification, responses.EXAMPLE),
                "headers": _HEADERS,
            },
            **_problem_responses(),
        },
        openapi_extra={"requestBody": _REQUEST_BODY},
    )
    async def classify(
        request: Request,
        parameters: Annotated[Parameters, Query()],
        timeout_s: Annotated[Timeout, Header(alias=TIMEOUT_HEADER)] = None,
    ) -> Response:
        """Send the image's bytes as the body, or as the file of a multipart form."""
        ask = _ask(parameters, timeout_s)
        request_id = request_id_of(request)
        with counted(service.metrics, cancelled=SHUTTING_DOWN) as outcome, counting_leavers(outcome):
            plan = service.admit(ask, outcome)
            async with uploads.image(request) as image:
                received_s = time.monotonic()
                async with cancelled_when_gone(request):
                    answer = await service.classify(plan, image, received_s)
            outcome.answered(answer.plan.entry.name, answer.total_s)
        headers = {CACHE_HEADER: "hit" if answer.remembered else "miss"} if service.cache else None
        return responses.response(request, responses.classification(answer, request_id), headers)

    @routes.post(
        "/classify/batch",
        summary="Classify several images",
        response_model=None,
        responses={
            200: {
                "description": "for each image its classes, or why it has none",
                "content": responses.content(ClassificationBatch, responses.BATCH_EXAMPLE),
            },
            **_problem_responses(),
        },
        openapi_extra={"requestBody": _BATCH_BODY},
    )
    async def classify_batch(
        request: Request,
        parameters: Annotated[Parameters, Query()],
        timeout_s: Annotated[Timeout, Header(alias=TIMEOUT_HEADER)] = None,
    ) -> Response:
        """Send the images as the files of a multipart form, or as a zip of them."""
        ask = _ask(parameters, timeout_s)
        request_id = request_id_of(request)
        with counted_if_refused(service.metrics) as outcome:
            plan = service.admit(ask, outcome, patient=True)
            async with uploads.files(request, service.settings.max_batch_images) as files:
                received_s = time.monotonic()
                async with cancelled_when_gone(request):
                    answers = await classify_each(service, plan, [file.read for file in files], received_s)
        results = [_result(file, answer, request_id) for file, answer in zip(files, answers, strict=True)]
        return responses.response(request, ClassificationBatch(results, request_id))

    return routes


def _ask(parameters: Parameters, timeout_s: float | None) -> Ask:
    return Ask(
        parameters.model,
        parameters.version,
        parameters.top_k,
        parameters.crops.value,
        Priority[parameters.priority.upper()] if parameters.priority else None,
        time.monotonic() + (timeout_s or math.inf),
    )


def _result(file: File, answer: Answer | ServiceError, request_id: str) -> ImageResult:
    if isinstance(answer, ServiceError):
        return ImageResult(file.name, None, ImageProblem(answer.code, answer.detail))
    return ImageResult(file.name, responses.classification(answer, request_id), None)


_BINARY = {"type": "string", "format": "binary"}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "image/*": {"schema": _BINARY},
        "multipart/form-data": {"schema": {"type": "object", "properties": {"file": _BINARY}, "required": ["file"]}},
    },
}
_BATCH_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "array", "items": _BINARY, "minItems": 1}},
                "required": ["file"],
            },
        },
        "application/zip": {"schema": _BINARY},
    },
}
_HEADERS: dict[str, Any] = {
    CACHE_HEADER: {
        "description": "whether the answer was remembered; only where the server has cache_entries",
        "schema": {"type": "string", "enum": ["hit", "miss"]},
    }
}


def _problem_responses() -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: each status of an error, with the codes that it stands for."""
    codes: dict[int, list[Code]] = {}
    for code, status in problems.STATUS.items():
        codes.setdefault(status, []).append(code)
    return {
        status: {"description": ", ".join(together), "model": problems.Problem, "content": {problems.MEDIA_TYPE: {}}}
        for status, together in codes.items()
    }
