"""`POST /classify`: one image in, its classes out. `POST /classify/batch`: the same for several."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from enum import IntEnum
from functools import partial
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from models.manifest import MAX_TOP_K, Entry
from server.engine.client import Classes, average
from server.engine.scheduler import Priority
from server.errors import CLIENT_CLOSED, SHUTTING_DOWN, Code, ServiceError
from server.http import answers, problems
from server.http.answers import Classification, ClassificationBatch, ImageProblem, ImageResult
from server.http.archives import File
from server.http.cache import digest_of
from server.http.disconnects import cancelled_when_gone
from server.http.refusals import PATH, TIMEOUT_HEADER
from server.http.request_ids import request_id_of
from server.http.service import Service
from server.repository import Model
from server.settings import PriorityName

DEFAULT_TOP_K = 5
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


class _Asked(NamedTuple):
    """What all images of one request have in common."""

    parameters: Parameters
    patience_s: float
    """Until then, by the monotonic clock, the client waits."""
    request_id: str


class _Answer(NamedTuple):
    classification: Classification
    remembered: bool


def router(service: Service) -> APIRouter:
    """The routes, bound to one HTTP worker's service."""
    routes = APIRouter(route_class=_Route)

    @routes.post(
        PATH,
        summary="Classify an image",
        response_model=None,
        responses={
            200: {
                "description": "its classes",
                "content": answers.content(Classification, answers.EXAMPLE),
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
        asked = _Asked(parameters, time.monotonic() + (timeout_s or math.inf), request_id_of(request))
        code, name = "internal_error", ""
        try:
            entry = service.catalogue.resolve(parameters.model, parameters.version)
            name = entry.name
            if not service.cache:  # else only the image can tell whether it needs a place
                service.client.check_admission(within_s=_within_s(service, asked, entry))
            async with service.uploads.image(request) as image:
                received_s = time.monotonic()
                async with cancelled_when_gone(request):
                    digest = await digest_of(image) if service.cache else None
                    answer, remembered = await _answer(service, asked, image, digest, received_s)
            code = "ok"
        except ServiceError as error:
            code = error.code
            raise
        except ClientDisconnect:
            code = CLIENT_CLOSED
            return Response(status_code=499)  # nginx's number for it; nobody reads this answer
        except asyncio.CancelledError:
            code = SHUTTING_DOWN
            raise
        finally:
            service.metrics.requests.labels(name, code).inc()
        headers = {CACHE_HEADER: "hit" if remembered else "miss"} if service.cache else None
        return answers.response(request, answer, headers)

    @routes.post(
        "/classify/batch",
        summary="Classify several images",
        response_model=None,
        responses={
            200: {
                "description": "for each image its classes, or why it has none",
                "content": answers.content(ClassificationBatch, answers.BATCH_EXAMPLE),
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
        """Send the images as the files of a multipart form, or as a zip, a tar or a gzipped tar of them."""
        asked = _Asked(parameters, time.monotonic() + (timeout_s or math.inf), request_id_of(request))
        name = ""
        try:
            entry = service.catalogue.resolve(parameters.model, parameters.version)
            name = entry.name
            if not service.cache:
                _check_batch(service, asked, entry)
            async with service.uploads.files(request, service.settings.max_batch_images) as files:
                received_s = time.monotonic()
                async with cancelled_when_gone(request):
                    results = await _results(service, asked, files, received_s)
        except ServiceError as error:  # of the request: no image of it was counted
            service.metrics.requests.labels(name, error.code).inc()
            raise
        except ClientDisconnect:
            return Response(status_code=499)
        return answers.response(request, ClassificationBatch(results, asked.request_id))

    return routes


def _within_s(service: Service, asked: _Asked, entry: Entry) -> float:
    """From the last byte of the upload: what server and client give an answer, if the upload took no time."""
    own = service.catalogue.settings(entry)
    return min((own.timeout_ms or service.settings.timeout_ms) / 1e3, asked.patience_s - time.monotonic())


def _places(service: Service, asked: _Asked, entry: Entry) -> int:
    """That one image takes."""
    return asked.parameters.crops * len(service.catalogue.members(entry))


async def _answer(service: Service, asked: _Asked, image: bytes, digest: bytes | None, received_s: float) -> _Answer:
    """Classify one image, unless what is remembered of that digest answers it."""
    top_k, crops = asked.parameters.top_k, asked.parameters.crops
    # What is served may have changed during the upload.
    entry = service.catalogue.resolve(asked.parameters.model, asked.parameters.version)
    members = service.catalogue.members(entry)
    key = (digest, tuple(member.id for member in members), top_k, crops.value) if digest else None
    remembered = service.cache.get(key) if key else None
    classes = remembered or await _infer(service, asked, entry, members, image, received_s)
    if not remembered:
        service.metrics.count_decoding(entry.name, classes.decode_wait_s, classes.decode_s)
    if key:
        service.cache.put(key, classes)
        counter = service.metrics.cache_hits if remembered else service.metrics.cache_misses
        counter.labels(entry.name).inc()
    random = any(member.manifest.weights.random for member in members)
    total_s = time.monotonic() - received_s
    service.metrics.total.labels(entry.name).observe(total_s)
    return _Answer(
        answers.classification(entry, classes, total_s, asked.request_id, random_weights=random),
        remembered is not None,
    )


async def _infer(
    service: Service, asked: _Asked, entry: Entry, members: Sequence[Model], image: bytes, received_s: float
) -> Classes:
    """Ask every member about every crop at one time; all answer, or the first failure is the request's."""
    top_k, crops = asked.parameters.top_k, asked.parameters.crops
    own = service.catalogue.settings(entry)
    deadline_s = min(received_s + (own.timeout_ms or service.settings.timeout_ms) / 1e3, asked.patience_s)
    priority = Priority[(asked.parameters.priority or own.priority).upper()]
    ask = partial(service.client.classify, image, deadline_s=deadline_s, priority=priority)
    if len(members) == 1 and crops is Crops.CENTRE:
        (classes,) = await ask(members[0], top_k)
        return classes
    try:
        async with asyncio.TaskGroup() as group:
            asked_of = [group.create_task(ask(member, None, crops=crops.value)) for member in members]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return average([answer for task in asked_of for answer in task.result()], min(top_k, members[0].manifest.top_k))


def _check_batch(service: Service, asked: _Asked, entry: Entry) -> None:
    """Refuse what could not be answered, before it is read; that no place is free is no reason: one will be."""
    try:
        service.client.check_admission(_places(service, asked, entry), _within_s(service, asked, entry))
    except ServiceError as error:
        if error.code is not Code.QUEUE_FULL:
            raise


async def _results(service: Service, asked: _Asked, files: Sequence[File], received_s: float) -> list[ImageResult]:
    """What becomes of each image, in their order. Cancelling the call gives all of them up."""
    entry = service.catalogue.resolve(asked.parameters.model, asked.parameters.version)
    within_s = _within_s(service, asked, entry)
    places = _places(service, asked, entry)
    max_batch = service.catalogue.settings(entry).max_batch or service.settings.max_batch
    # What the engine runs and what it runs next: with more of them, single requests would wait longer for a decoder.
    window = asyncio.Semaphore(max(service.settings.decode_threads, 2 * max_batch))

    async def classify(file: File) -> Classification:
        try:
            async with asyncio.timeout(within_s), window, service.places.taken(places):
                image = await asyncio.to_thread(file.read)
                if not image:
                    raise ServiceError(Code.EMPTY_BODY, "the file is empty")
                digest = await digest_of(image) if service.cache else None
                while True:
                    try:
                        return (await _answer(service, asked, image, digest, received_s)).classification
                    except ServiceError as error:
                        if error.code is not Code.QUEUE_FULL:
                            raise
                    await service.places.retry()
        except TimeoutError:
            raise ServiceError(Code.DEADLINE_EXCEEDED, "the answer was not ready within the time limit") from None

    async def result(file: File) -> ImageResult:
        code = "internal_error"
        try:
            answer = await classify(file)
            code = "ok"
            return ImageResult(file.name, answer, None)
        except ServiceError as error:
            code = error.code
            return ImageResult(file.name, None, ImageProblem(error.code, error.detail))
        except asyncio.CancelledError:
            code = CLIENT_CLOSED
            raise
        finally:
            service.metrics.requests.labels(entry.name, code).inc()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(result(file)) for file in files]
    return [task.result() for task in tasks]


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
        "application/x-tar": {"schema": _BINARY},
        "application/gzip": {"schema": _BINARY},
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
