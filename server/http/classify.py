"""`POST /classify`: one image in, its classes out."""

import asyncio
import math
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from models.manifest import MAX_TOP_K, Entry
from server.engine.client import Classes, EngineClient, average
from server.engine.scheduler import Priority
from server.errors import CLIENT_CLOSED, Code, ServiceError
from server.http import problems, request_ids
from server.http.disconnects import cancelled_when_gone
from server.http.refusals import PATH, TIMEOUT_HEADER
from server.http.request_ids import request_id_of
from server.http.service import Service
from server.repository import Model
from server.settings import PriorityName

DEFAULT_TOP_K = 5


class Crops(IntEnum):
    """How many parts of the image are looked at."""

    CENTRE = 1
    TEN = 10


class Prediction(BaseModel):
    """One class."""

    class_id: int
    wordnet_id: str | None
    label: str
    probability: float


class Timings(BaseModel):
    """Milliseconds. What the parts lack of the total is waiting for a decoder and the way between processes."""

    decode: float
    queue: float
    inference: float
    total: float = Field(description="from the last byte of the upload")


class Classification(BaseModel):
    """The classes of an image, most probable first."""

    model: str
    version: int
    random_weights: bool = Field(description="true: the network is untrained and the predictions mean nothing")
    predictions: list[Prediction]
    timings_ms: Timings
    batch_size: int = Field(
        description="images in the batch that this one ran in; the largest, where there were several"
    )
    request_id: str


def router(service: Service) -> APIRouter:
    """The route, bound to one HTTP worker's service."""
    routes = APIRouter()

    @routes.post(
        PATH,
        summary="Classify an image",
        response_model=None,
        responses={200: {"model": Classification}, **_problem_responses()},
        openapi_extra={"requestBody": _REQUEST_BODY},
    )
    async def classify(
        request: Request,
        top_k: Annotated[int, Query(ge=1, le=MAX_TOP_K, description="classes wanted; at most the model's")] = (
            DEFAULT_TOP_K
        ),
        model: Annotated[str | None, Query(description="name; without it the default model")] = None,
        version: Annotated[int | None, Query(ge=1, description="without it the newest")] = None,
        crops: Annotated[Crops, Query(description="10: the mean over the centre, the corners and their mirrors")] = (
            Crops.CENTRE
        ),
        priority: Annotated[
            PriorityName | None, Query(description="who goes first; without it as the model has it")
        ] = (None),
        timeout_s: Annotated[
            float | None,
            Header(
                alias=TIMEOUT_HEADER,
                ge=0.001,
                le=3600,
                description="seconds from here to the answer; the server's at most",
            ),
        ] = None,
    ) -> Response:
        """Send the image's bytes as the body, or as the file of a multipart form."""
        code, name = "internal_error", ""
        started_s = time.monotonic()
        try:
            entry = service.catalogue.resolve(model, version)
            name = entry.name
            own = service.catalogue.settings(entry)
            within_s = (own.timeout_ms or service.settings.timeout_ms) / 1e3
            patience_s = started_s + (timeout_s or math.inf)
            service.client.check_admission(within_s=min(within_s, timeout_s or math.inf))
            async with service.uploads.image(request) as image:
                started_s = time.monotonic()
                deadline_s = min(started_s + within_s, patience_s)
                entry = service.catalogue.resolve(model, version)  # what is served may have changed meanwhile
                async with cancelled_when_gone(request):
                    members = service.catalogue.members(entry)
                    classes = await _infer(
                        service.client,
                        image,
                        members,
                        top_k,
                        deadline_s,
                        crops,
                        Priority[(priority or own.priority).upper()],
                    )
            random = any(member.manifest.weights.random for member in members)
            total_s = time.monotonic() - started_s
            answer = _classification(entry, classes, total_s, request_id_of(request), random_weights=random)
            code = "ok"
        except ServiceError as error:
            code = error.code
            raise
        except ClientDisconnect:
            code = CLIENT_CLOSED
            return Response(status_code=499)  # nginx's number for it; nobody reads this answer
        finally:
            service.metrics.requests.labels(name, code).inc()
        service.metrics.decode.labels(name).observe(classes.decode_s)
        service.metrics.total.labels(name).observe(answer.timings_ms.total / 1e3)
        headers = {request_ids.HEADER: answer.request_id}
        return Response(answer.model_dump_json(), headers=headers, media_type="application/json")

    return routes


async def _infer(
    client: EngineClient,
    image: bytes,
    members: Sequence[Model],
    top_k: int,
    deadline_s: float,
    crops: Crops,
    priority: Priority,
) -> Classes:
    """Ask every member about every crop at one time; all answer, or the first failure is the request's."""
    if len(members) == 1 and crops is Crops.CENTRE:
        (classes,) = await client.classify(image, members[0], top_k, deadline_s, priority=priority)
        return classes
    try:
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(
                    client.classify(image, member, None, deadline_s, crops=crops.value, priority=priority)
                )
                for member in members
            ]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return average([answer for task in asked for answer in task.result()], min(top_k, members[0].manifest.top_k))


def _classification(
    entry: Entry, classes: Classes, total_s: float, request_id: str, *, random_weights: bool
) -> Classification:
    return Classification(
        model=entry.name,
        version=entry.version,
        random_weights=random_weights,
        predictions=[
            Prediction(
                class_id=index,
                wordnet_id=entry.labels[index].wordnet_id,
                label=entry.labels[index].label,
                probability=round(probability, 7),  # all that float32 holds
            )
            for index, probability in zip(classes.indices.tolist(), classes.probabilities.tolist(), strict=True)
        ],
        timings_ms=Timings(
            decode=round(classes.decode_s * 1e3, 3),
            queue=round(classes.queue_s * 1e3, 3),
            inference=round(classes.inference_s * 1e3, 3),
            total=round(total_s * 1e3, 3),
        ),
        batch_size=classes.batch_size,
        request_id=request_id,
    )


_BINARY = {"type": "string", "format": "binary"}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "image/*": {"schema": _BINARY},
        "multipart/form-data": {"schema": {"type": "object", "properties": {"file": _BINARY}, "required": ["file"]}},
    },
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
