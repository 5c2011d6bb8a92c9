"""What a classified image is answered with: one definition, encoded as JSON or msgpack, and described in OpenAPI."""

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from fastapi import Request, Response
from msgspec import UNSET, Meta, UnsetType

from server.http import request_ids
from server.http.fields import field
from server.serving.plan import Answer

JSON, MSGPACK = "application/json", "application/msgpack"
_REFERENCE = "#/components/schemas/{name}"


class Prediction(msgspec.Struct, frozen=True):
    """One class."""

    class_id: int
    wordnet_id: str | None
    label: str
    probability: float


class Timings(msgspec.Struct, frozen=True):
    """Milliseconds; of several crops or members, each part's longest, and of members that were asked one after another
    their sum. Ways between processes are in `total` only."""

    decode_wait: Annotated[float, Meta(description="for a thread to decode")]
    decode: float
    queue: Annotated[float, Meta(description="from decoded to inference")]
    inference: float
    total: Annotated[float, Meta(description="from the last byte of the upload")]


class Classification(msgspec.Struct, frozen=True):
    """The classes of an image, most probable first."""

    model: str
    version: int
    random_weights: Annotated[bool, Meta(description="true: the network is untrained and the predictions mean nothing")]
    predictions: list[Prediction]
    timings_ms: Timings
    batch_size: Annotated[
        int,
        Meta(
            description="images in the batch that this one ran in; the largest, where there were several; "
            "0: the answer was remembered"
        ),
    ]
    request_id: str
    answered_by: Annotated[
        str | UnsetType, Meta(description="of a cascade, the member whose answer it is; not there for other models")
    ] = UNSET
    cut_short: Annotated[
        bool | UnsetType,
        Meta(description="of a cascade: true: the next member would have been asked, had there been time"),
    ] = UNSET


class ImageProblem(msgspec.Struct, frozen=True):
    """Why one image of several has no classes, as the problem document of a request for it alone would say."""

    code: str
    detail: str


class ImageResult(msgspec.Struct, frozen=True):
    """What became of one image of several: a classification, or a problem."""

    name: Annotated[str, Meta(description="as the upload has it")]
    classification: Classification | None
    problem: ImageProblem | None


class ClassificationBatch(msgspec.Struct, frozen=True):
    """What became of each image, in the order of the upload."""

    results: list[ImageResult]
    request_id: str


def classification(answer: Answer, request_id: str) -> Classification:
    """The answer about one image."""
    entry, classes = answer.plan.entry, answer.classes
    return Classification(
        entry.name,
        entry.version,
        answer.plan.random_weights,
        [
            Prediction(
                index,
                entry.labels[index].wordnet_id,
                entry.labels[index].label,
                round(probability, 7),  # all that float32 holds
            )
            for index, probability in zip(classes.indices.tolist(), classes.probabilities.tolist(), strict=True)
        ],
        Timings(
            decode_wait=round(classes.decode_wait_s * 1e3, 3),
            decode=round(classes.decode_s * 1e3, 3),
            queue=round(classes.queue_s * 1e3, 3),
            inference=round(classes.inference_s * 1e3, 3),
            total=round(answer.total_s * 1e3, 3),
        ),
        classes.batch_size,
        request_id,
        *((classes.answered_by, classes.cut_short) if classes.answered_by else ()),
    )


def response(
    request: Request, answer: Classification | ClassificationBatch, headers: dict[str, str] | None = None
) -> Response:
    """The answer in the format that the client prefers."""
    headers = {request_ids.HEADER: answer.request_id, **(headers or {})}
    if prefers_msgpack(field(request.scope, b"accept") or ""):
        return Response(_to_msgpack(answer), headers=headers, media_type=MSGPACK)
    return Response(_to_json(answer), headers=headers, media_type=JSON)


def prefers_msgpack(accept: str) -> bool:
    """Whether an Accept field names msgpack, and nothing that means JSON with a higher or, by name, the same quality.

    Qualities are those of RFC 9110, 12.4.2. Whatever else it says, the answer is JSON.
    """
    if MSGPACK not in accept.lower():
        return False
    qualities = dict(map(quality, accept.lower().split(",")))
    json = next((qualities[range_] for range_ in (JSON, "application/*", "*/*") if range_ in qualities), 0.0)
    msgpack = qualities.get(MSGPACK, 0.0)
    return msgpack > json or (msgpack == json > 0 and JSON not in qualities)


def quality(media_range: str) -> tuple[str, float]:
    """One media range of an Accept field, and its quality; 0: not that."""
    kind, *parameters = (part.strip() for part in media_range.split(";"))
    weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    try:
        return kind, float(weight)
    except ValueError:
        return kind, 0.0


def content(answer: type[msgspec.Struct]) -> dict[str, Any]:
    """The content of a response, for OpenAPI."""
    described = {"schema": {"$ref": _REFERENCE.format(name=answer.__name__)}}
    return {JSON: described, MSGPACK: described}


def schemas(answers: Iterable[type[msgspec.Struct]] = (Classification, ClassificationBatch)) -> dict[str, Any]:
    """What `content` refers to, for OpenAPI."""
    return msgspec.json.schema_components(answers, ref_template=_REFERENCE)[1]


_to_json = msgspec.json.Encoder().encode
_to_msgpack = msgspec.msgpack.Encoder().encode

EXAMPLE = Classification(
    model="efficientnet_lite0",
    version=1,
    random_weights=False,
    predictions=[
        Prediction(class_id=967, wordnet_id="n07920052", label="espresso", probability=0.9355872),
        Prediction(class_id=968, wordnet_id="n07930864", label="cup", probability=0.0171648),
    ],
    timings_ms=Timings(decode_wait=0.13, decode=1.495, queue=0.403, inference=6.596, total=9.336),
    batch_size=1,
    request_id="f1e5f5f631506c8961fbc6674824c981",
)
BATCH_EXAMPLE = ClassificationBatch(
    results=[
        ImageResult(name="espresso.jpg", classification=EXAMPLE, problem=None),
        ImageResult(
            name="notes.txt",
            classification=None,
            problem=ImageProblem(code="not_an_image", detail="the bytes are in none of the formats"),
        ),
    ],
    request_id=EXAMPLE.request_id,
)
