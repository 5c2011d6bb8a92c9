"""`POST /classify`: one image in, its classes out. `POST /classify/batch`: the same for several.

`POST /embed`: one image in, its features out.
"""

import difflib
import math
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import reduce
from operator import or_
from typing import Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from starlette.types import Receive, Scope, Send

from models.manifest import MAX_TOP_K
from server.engine.classes import Extras
from server.engine.scheduler import Priority
from server.errors import ServiceError
from server.http import openapi, problems, responses
from server.http.archives import File
from server.http.disconnects import cancelled_when_gone, counted
from server.http.fields import field
from server.http.load_shedding import PATH, TIMEOUT_FIELD, TIMEOUT_HEADER
from server.http.request_ids import request_id_of
from server.http.responses import Classification, ClassificationBatch, Embedding, ImageProblem, ImageResult
from server.http.uploads import Uploads
from server.serving.outcomes import counted_if_refused
from server.serving.plan import DEFAULT_TOP_K, Answer, Ask, Plan
from server.serving.service import Service
from server.serving.several import classify_each
from server.settings import PriorityName

CACHE_HEADER = "X-Cache"
EMBED_PATH = "/embed"
_INCLUDE_PATTERN = "^(logits|features|heatmap)(,(logits|features|heatmap))*$"


class Crops(IntEnum):
    """How many crops of the image are classified."""

    CENTRE = 1
    TEN = 10


EXTRAS = {"logits": Extras.LOGITS, "features": Extras.FEATURES, "heatmap": Extras.HEATMAP}


def _included(text: str) -> str:
    names = text.split(",")
    if not set(names) <= EXTRAS.keys():
        raise PydanticCustomError("include", "name some of logits, features, heatmap, separated by commas alone")
    return text


class EmbedParameters(BaseModel):
    """Parameters of `/embed`, from the query or a form's fields."""

    model_config = ConfigDict(extra="forbid")

    model: str | SkipJsonSchema[None] = Field(
        None, description="name of the model; by default, the server's default model"
    )
    version: Annotated[int, Field(ge=1)] | SkipJsonSchema[None] = Field(None, description="by default the newest")
    priority: PriorityName | SkipJsonSchema[None] = Field(
        None, description="priority among waiting requests; by default the model's own"
    )


class Parameters(EmbedParameters):
    """Parameters of `/classify`, from the query or a form's fields; in a batch they apply to all images."""

    top_k: int = Field(DEFAULT_TOP_K, ge=1, le=MAX_TOP_K, description="number of classes; at most the model's")
    crops: Crops = Field(Crops.CENTRE, description="10: the mean over the centre, the corners and their mirrors")
    include: Annotated[str, AfterValidator(_included)] | SkipJsonSchema[None] = Field(
        None,
        description="further outputs of the same pass, comma-separated: logits, features, heatmap"
        " (docs/guides/features.md)",
        json_schema_extra={"pattern": _INCLUDE_PATTERN},
    )
    coverage: Annotated[float, Field(gt=0, lt=1)] | SkipJsonSchema[None] = Field(
        None,
        description="for a calibrated model, instead of top_k: return the fewest classes that contain the true one with"
        " this probability. It holds for images like those that the model was calibrated on, on average over all of"
        " them, not for each class or each kind of image",
    )
    reject: bool = Field(
        default=False,
        description="for a calibrated model: return as `known` whether the image belongs to any of its classes",
    )


Timeout = Annotated[
    Annotated[float, Field(ge=0.001, le=3600)] | SkipJsonSchema[None],
    Field(description="time limit for the answer in seconds; at most the server's own"),
]
_TIMEOUT: TypeAdapter[float | None] = TypeAdapter(Timeout)


class _Route(APIRoute):
    """Parses the declared parameters with their Pydantic models alone, bypassing FastAPI's own machinery.

    FastAPI's parameter parsing costs more than the rest of such a request, and so do its exit stacks for dependencies,
    which no route here has. FastAPI still describes the parameters in OpenAPI.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **described: Any) -> None:
        super().__init__(path, endpoint, **described)
        self._parameters = EmbedParameters if path == EMBED_PATH else Parameters
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        parameters = _parameters(request, (), self._parameters)
        try:
            timeout = field(scope, TIMEOUT_FIELD)
            timeout_s = None if timeout is None else _TIMEOUT.validate_python(timeout)
        except ValidationError as error:
            raise _invalid("header", TIMEOUT_HEADER, error.errors()[0]["msg"]) from None
        response: Response = await self.endpoint(request, parameters, timeout_s)
        await response(scope, receive, send)


Kind = TypeVar("Kind", bound=EmbedParameters)
_NO_PARAMETERS: dict[type[EmbedParameters], EmbedParameters] = {kind: kind() for kind in (EmbedParameters, Parameters)}


def _parameters(request: Request, fields: Sequence[tuple[str, str]], kind: type[Kind]) -> Kind:
    """The parameters of the query and of a form; each may be given once.

    A form may have other fields, unless one looks like a misspelt parameter.

    Raises:
        RequestValidationError: a parameter is wrong or unknown.
    """
    if not (fields or request.scope["query_string"]):
        return cast("Kind", _NO_PARAMETERS[kind])
    known = kind.model_fields
    given: dict[str, str] = {}
    queried = [("query", *each) for each in request.query_params.multi_items()]
    for where, name, value in [*queried, *(("form", *each) for each in fields)]:
        if name not in known:
            meant = difflib.get_close_matches(name.lower(), known, 1, cutoff=0.8)
            if where == "query" or meant:
                there_is = ", ".join(meant or known)
                raise _invalid(where, name[:100], f"there is no such parameter; there is {there_is}")
            continue
        if name in given:
            raise _invalid(where, name, "it is given twice")
        given[name] = value
    try:
        found = kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise _invalid("query", str(first["loc"][0]), first["msg"]) from None
    if isinstance(found, Parameters) and found.coverage is not None and "top_k" in given:
        raise _invalid("query", "top_k", "coverage decides how many classes there are: leave out one of the two")
    return found


def _invalid(where: str, name: str, message: str) -> RequestValidationError:
    """The error that FastAPI would have raised."""
    return RequestValidationError([{"loc": (where, name), "msg": message}])


def router(service: Service, uploads: Uploads) -> APIRouter:
    """The routes, bound to one HTTP worker's service."""
    routes = APIRouter(route_class=_Route, tags=["classify"], generate_unique_id_function=openapi.operation_id)

    async def answer_one(
        request: Request, parameters: EmbedParameters, timeout_s: float | None
    ) -> tuple[Answer, bytes | None]:
        """The model's answer for the request's one image, and the heat map as a PNG if the client prefers that."""
        with counted(service.metrics) as outcome:
            plan = service.admit(_ask(parameters, timeout_s), outcome)
            async with uploads.image(request) as image:
                received_s = time.monotonic()
                plan = _plan(service, plan, request, image.fields, type(parameters))
                plan = service.canaries.chosen(plan, image.content)
                async with cancelled_when_gone(request):
                    answer = await service.classify(plan, image.content, received_s)
                    picture = await _picture(service, request, answer, image.content)
            outcome.answered([answer])
        return answer, picture

    @routes.post(
        PATH,
        summary="Classify an image",
        response_model=None,
        responses={
            200: {
                "description": "its classes",
                "content": responses.content(Classification) | {responses.PNG: {"schema": _BINARY}},
                "headers": _HEADERS,
            },
        },
        openapi_extra={"requestBody": _REQUEST_BODY},
    )
    async def classify(
        request: Request,
        parameters: Annotated[Parameters, Query()],
        timeout_s: Annotated[Timeout, Header(alias=TIMEOUT_HEADER)] = None,
    ) -> Response:
        """Send the image's bytes as the body, or as the file of a multipart form.

        With `include=heatmap` and `Accept: image/png` the answer is the photo, with the evidence for its best class
        highlighted in colour.
        """
        answer, picture = await answer_one(request, parameters, timeout_s)
        request_id = request_id_of(request)
        headers = {CACHE_HEADER: "hit" if answer.remembered else "miss"} if service.cache else None
        if picture is not None:
            return responses.png(picture, request_id, headers)
        return responses.response(
            request, responses.classification(answer, request_id, binary=_is_binary(request, answer)), headers
        )

    @routes.post(
        EMBED_PATH,
        summary="The features of an image",
        response_model=None,
        responses={200: {"description": "its features", "content": responses.content(Embedding)}},
        openapi_extra={"requestBody": _REQUEST_BODY},
    )
    async def embed(
        request: Request,
        parameters: Annotated[EmbedParameters, Query()],
        timeout_s: Annotated[Timeout, Header(alias=TIMEOUT_HEADER)] = None,
    ) -> Response:
        """Send the image as to `/classify`. Returns the input of the model's last layer, for search and comparison."""
        answer, _ = await answer_one(request, parameters, timeout_s)
        binary = _is_binary(request, answer)
        return responses.response(request, responses.embedding(answer, request_id_of(request), binary=binary))

    @routes.post(
        "/classify/batch",
        summary="Classify several images",
        response_model=None,
        responses={
            200: {
                "description": "for each image its classes, or the reason why it has none",
                "content": responses.content(ClassificationBatch),
            },
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
            async with uploads.files(request, service.settings.max_batch_images) as (files, fields):
                received_s = time.monotonic()
                plan = _plan(service, plan, request, fields, type(parameters))
                async with cancelled_when_gone(request):
                    answers = await classify_each(service, plan, [file.read for file in files], received_s)
        results = [_result(request, file, answer, request_id) for file, answer in zip(files, answers, strict=True)]
        return responses.response(request, ClassificationBatch(results, request_id))

    return routes


async def _picture(service: Service, request: Request, answer: Answer, image: bytes) -> bytes | None:
    """The photo with the heat map of its best class, as a PNG; None: the client does not prefer that."""
    include = answer.plan.ask.include
    if not (include and Extras.HEATMAP in include and responses.prefers_png(field(request.scope, b"accept") or "")):
        return None
    classes = answer.classes
    return await service.drawing.draw(image, classes.photo_size, classes.activation_maps[0], answer.box)


def _is_binary(request: Request, answer: Answer) -> bool:
    """Whether features are sent as bytes."""
    include = answer.plan.ask.include
    return bool(include) and responses.prefers_msgpack(field(request.scope, b"accept") or "")


def _plan(
    service: Service,
    plan: Plan,
    request: Request,
    fields: Sequence[tuple[str, str]],
    kind: type[EmbedParameters],
) -> Plan:
    """The plan, or a new one if the fields of a form change the request."""
    if not fields:
        return plan
    try:
        parameters = _parameters(request, fields, kind)
    except RequestValidationError as error:
        raise problems.invalid_parameter(error) from None
    return service.plan(_ask(parameters, None)._replace(patience_s=plan.ask.patience_s))


def _ask(parameters: EmbedParameters, timeout_s: float | None) -> Ask:
    model, version = parameters.model, parameters.version
    priority = Priority[parameters.priority.upper()] if parameters.priority else None
    patience_s = time.monotonic() + (timeout_s or math.inf)
    if not isinstance(parameters, Parameters):
        return Ask(model, version, 1, priority=priority, patience_s=patience_s, include=Extras.FEATURES)
    include = reduce(or_, map(EXTRAS.__getitem__, parameters.include.split(","))) if parameters.include else Extras.NONE
    return Ask(
        model,
        version,
        parameters.top_k,
        parameters.crops.value,
        priority,
        patience_s,
        include,
        parameters.coverage,
        parameters.reject,
    )


def _result(request: Request, file: File, answer: Answer | ServiceError, request_id: str) -> ImageResult:
    if isinstance(answer, ServiceError):
        return ImageResult(file.name, None, ImageProblem(answer.code, answer.detail))
    found = responses.classification(answer, request_id, binary=_is_binary(request, answer))
    return ImageResult(file.name, found, None)


_BINARY = {"type": "string", "format": "binary"}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": _BINARY},  # openapi-generator sends the first type listed
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
        "description": "whether the answer came from the cache; sent only if the server has cache_entries",
        "schema": {"type": "string", "enum": ["hit", "miss"]},
    }
}
