"""Response bodies for classified images: defined once, encoded as JSON or msgpack, and described in OpenAPI."""

from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import Request, Response
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from server.engine.classes import Classes, Extras
from server.http import request_ids
from server.http.fields import field
from server.serving.plan import Answer

JSON, MSGPACK, PNG = "application/json", "application/msgpack", "image/png"
_REFERENCE = "#/components/schemas/{name}"


class Prediction(msgspec.Struct, frozen=True):
    """One class."""

    class_id: int
    wordnet_id: str | None
    label: str
    probability: float


class Timings(msgspec.Struct, frozen=True):
    """Milliseconds. With several crops or members, the longest of each; for members asked one after another, the sum.
    Transport between processes is only in `total`."""

    decode_wait: Annotated[float, Meta(description="wait for a thread to decode")]
    decode: float
    queue: Annotated[float, Meta(description="from decoded to inference")]
    inference: float
    total: Annotated[float, Meta(description="from the last byte of the upload")]


class Heatmap(msgspec.Struct, frozen=True):
    """Where in the photo the logits of the best classes come from (class activation maps, arXiv:1512.04150)."""

    class_ids: Annotated[list[int], Meta(description="classes of the maps: the best ones, at most 5")]
    maps: Annotated[
        list[list[list[float]]],
        Meta(
            description="for each class, rows from the top of numbers from the left; their mean is the logit less bias"
        ),
    ]
    box: Annotated[
        list[float],
        Meta(
            min_length=4,
            max_length=4,
            description="part of the photo, upright by its EXIF orientation, that a map covers: left, top, right and"
            " bottom, as shares of its width and height; below 0 or above 1 if the network saw more than the photo",
        ),
    ]


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
            description="images in the batch that this one ran in; the largest, if there were several; "
            "0: the answer came from the cache"
        ),
    ]
    request_id: str
    answered_by: Annotated[
        str | UnsetType, Meta(description="for a cascade, the member that answered; missing for other models")
    ] = UNSET
    cut_short: Annotated[
        bool | UnsetType,
        Meta(description="for a cascade; true: only lack of time kept the next member from being asked"),
    ] = UNSET
    logits: Annotated[list[float] | UnsetType, Meta(description="of every class, if included")] = UNSET
    features: Annotated[
        list[float] | bytes | UnsetType,
        Meta(
            description="input of the network's last layer, if included; in msgpack, bytes with each number as a"
            " little-endian float32"
        ),
    ] = UNSET
    heatmap: Heatmap | UnsetType = UNSET
    coverage: Annotated[
        float | UnsetType,
        Meta(
            description="if requested, the least probability that the true class is among the predictions, on average"
            " over images like those that the model was calibrated on"
        ),
    ] = UNSET
    known: Annotated[
        bool | UnsetType,
        Meta(description="if `reject` was requested; false: the image may belong to none of the classes"),
    ] = UNSET


class Embedding(msgspec.Struct, frozen=True):
    """The features of an image: the input of the network's last layer."""

    model: str
    version: int
    random_weights: Annotated[bool, Meta(description="true: the network is untrained and its features mean little")]
    features: Annotated[
        list[float] | bytes, Meta(description="in msgpack, bytes with each number as a little-endian float32")
    ]
    timings_ms: Timings
    batch_size: Annotated[int, Meta(description="images in the batch that this one ran in")]
    request_id: str


class ImageProblem(msgspec.Struct, frozen=True):
    """Why one image of several has no classes; as in the problem document for the same image sent alone."""

    code: str
    detail: str


class ImageResult(msgspec.Struct, frozen=True):
    """Result for one image of several: a classification or a problem."""

    name: Annotated[str, Meta(description="the file's name in the upload")]
    classification: Classification | None
    problem: ImageProblem | None


class ClassificationBatch(msgspec.Struct, frozen=True):
    """Result for each image, in the order of the upload."""

    results: list[ImageResult]
    request_id: str


def classification(answer: Answer, request_id: str, *, binary: bool = False) -> Classification:
    """The answer about one image; `binary`: features as bytes, which only msgpack has."""
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
                round(probability, 7),  # float32's precision
            )
            for index, probability in zip(classes.indices.tolist(), classes.probabilities.tolist(), strict=True)
        ],
        _timings(answer),
        classes.batch_size,
        request_id,
        classes.answered_by or UNSET,
        classes.cut_short if classes.answered_by else UNSET,
        *(_extras(answer, binary=binary) if answer.plan.ask.include else (UNSET, UNSET, UNSET)),
        UNSET if (coverage := answer.plan.ask.coverage) is None else coverage,
        UNSET if classes.known is None else classes.known,
    )


def embedding(answer: Answer, request_id: str, *, binary: bool) -> Embedding:
    """The features of one image; `binary`: as bytes, which only msgpack has."""
    entry, classes = answer.plan.entry, answer.classes
    return Embedding(
        entry.name,
        entry.version,
        answer.plan.random_weights,
        _features(classes, binary=binary),
        _timings(answer),
        classes.batch_size,
        request_id,
    )


def _extras(
    answer: Answer, *, binary: bool
) -> tuple[list[float] | UnsetType, list[float] | bytes | UnsetType, Heatmap | UnsetType]:
    classes, include = answer.classes, answer.plan.ask.include
    return (
        _numbers(classes.logits) if Extras.LOGITS in include else UNSET,
        _features(classes, binary=binary) if Extras.FEATURES in include else UNSET,
        _heatmap(answer) if Extras.HEATMAP in include else UNSET,
    )


def _timings(answer: Answer) -> Timings:
    classes = answer.classes
    return Timings(
        decode_wait=round(classes.decode_wait_s * 1e3, 3),
        decode=round(classes.decode_s * 1e3, 3),
        queue=round(classes.queue_s * 1e3, 3),
        inference=round(classes.inference_s * 1e3, 3),
        total=round(answer.total_s * 1e3, 3),
    )


def _features(classes: Classes, *, binary: bool) -> list[float] | bytes:
    return classes.features.astype("<f4", copy=False).tobytes() if binary else _numbers(classes.features)


def _heatmap(answer: Answer) -> Heatmap:
    classes = answer.classes
    mapped = classes.indices[: len(classes.activation_maps)].tolist()
    return Heatmap(mapped, _numbers(classes.activation_maps), [*answer.box])


def _numbers(values: NDArray[np.float32]) -> list[Any]:
    """As lists, rounded to seven decimals, about float32's precision."""
    found: list[Any] = values.astype(np.float64).round(7).tolist()
    return found


def response(
    request: Request,
    answer: Classification | ClassificationBatch | Embedding,
    headers: dict[str, str] | None = None,
) -> Response:
    """The answer in the format that the client prefers."""
    headers = {request_ids.HEADER: answer.request_id, **(headers or {})}
    if prefers_msgpack(field(request.scope, b"accept") or ""):
        return Response(_to_msgpack(answer), headers=headers, media_type=MSGPACK)
    return Response(_to_json(answer), headers=headers, media_type=JSON)


def png(picture: bytes, request_id: str, headers: dict[str, str] | None) -> Response:
    """The response that holds a picture."""
    return Response(picture, headers={request_ids.HEADER: request_id, **(headers or {})}, media_type=PNG)


def prefers_msgpack(accept: str) -> bool:
    """Whether an Accept field prefers msgpack to JSON; at equal quality msgpack wins unless JSON is named, too.

    Qualities are those of RFC 9110, 12.4.2. In all other cases the answer is JSON.
    """
    return _prefers(accept, MSGPACK)


def prefers_png(accept: str) -> bool:
    """Whether an Accept field prefers PNG, likewise."""
    return _prefers(accept, PNG)


def _prefers(accept: str, kind: str) -> bool:
    if kind not in accept.lower():
        return False
    qualities = dict(map(quality, accept.lower().split(",")))
    json = next((qualities[range_] for range_ in (JSON, "application/*", "*/*") if range_ in qualities), 0.0)
    wanted = qualities.get(kind, 0.0)
    return wanted > json or (wanted == json > 0 and JSON not in qualities)


def quality(media_range: str) -> tuple[str, float]:
    """One media range of an Accept field, and its quality; 0: not acceptable."""
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


def schemas() -> dict[str, Any]:
    """The schemas that `content` refers to, for OpenAPI."""
    answers = Classification, ClassificationBatch, Embedding
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
EMBEDDING_EXAMPLE = Embedding(
    model="efficientnet_lite0",
    version=1,
    random_weights=False,
    features=[0.1873421, 0.0, 0.9132765],
    timings_ms=EXAMPLE.timings_ms,
    batch_size=1,
    request_id=EXAMPLE.request_id,
)
BATCH_EXAMPLE = ClassificationBatch(
    results=[
        ImageResult(name="espresso.jpg", classification=EXAMPLE, problem=None),
        ImageResult(
            name="notes.txt",
            classification=None,
            problem=ImageProblem(code="not_an_image", detail="the body is not an image in an accepted format"),
        ),
    ],
    request_id=EXAMPLE.request_id,
)
