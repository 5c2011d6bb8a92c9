"""One inference request of the protocol: N images in one tensor, their classes in the output tensors."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import numpy as np

from models.manifest import (
    ACTIVATION_MAPS_NAME,
    FEATURES_NAME,
    INDICES_NAME,
    LOGITS_NAME,
    MAX_TOP_K,
    PROBABILITIES_NAME,
    Entry,
)
from server.engine.classes import Classes, Extras
from server.engine.scheduler import Priority
from server.errors import Code, ServiceError
from server.serving.outcomes import Outcome
from server.serving.plan import DEFAULT_TOP_K, Answer, Ask
from server.serving.service import Service
from server.serving.several import classify_all
from server.v2 import views
from server.v2.models import (
    BOXES_NAME,
    KNOWN_NAME,
    LABELS_NAME,
    NO_SHARED_MEMORY,
    SHARED_MEMORY,
    inputs_of,
    max_images,
    number,
)
from server.v2.tensors import Tensor, Values
from server.v2.views import ENCODED_NAME, SCALINGS, SCORES_NAME, Found, InputSpec, View

OUTPUT_NAMES = (PROBABILITIES_NAME, INDICES_NAME, LABELS_NAME)
EXTRA_NAMES = {
    LOGITS_NAME: Extras.LOGITS,
    FEATURES_NAME: Extras.FEATURES,
    ACTIVATION_MAPS_NAME: Extras.HEATMAP,
    BOXES_NAME: Extras.HEATMAP,
}
"""Outputs that are answered only if requested."""
NO_CLASS = -1
"""Index that pads the row of an image whose prediction set has fewer classes than another's; it has no label."""
RANKED_NAMES = (PROBABILITIES_NAME, SCORES_NAME)
"""Outputs that the parameter `classification` turns into text."""
ASKS_FOR_LAST = "triton_enable_empty_final_response"
"""Triton's parameter that marks the last of several answers; accepted and ignored, as each request has one answer."""
CLASSES = ("top_k", "coverage", "reject")
"""Parameters that select classes; a view refuses them, as it answers all classes."""
SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
"""Parameters of Triton's stateful models. No model here has state, so only 0, "" and false are accepted."""

Parameters = Mapping[str, bool | int | float | str]


class Input(NamedTuple):
    """A tensor that was sent. `read` takes the number of elements that the shape implies, and checks little else."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    read: Callable[[int], Values]
    parameters: Parameters
    """Without those that REST or gRPC has handled."""


class RequestedOutput(NamedTuple):
    """A requested output tensor."""

    name: str
    parameters: Parameters
    """Without those that REST or gRPC has handled."""


class Wanted(NamedTuple):
    """An output as it will be answered."""

    name: str
    classes: int | None
    """Number of classes per image; None: all."""
    as_text: bool


class InferRequest(NamedTuple):
    """A request; `timeout_s` is the client's time limit besides the parameter `timeout`."""

    model: str
    version: str
    parameters: Parameters
    inputs: Sequence[Input]
    outputs: Sequence[RequestedOutput]
    """Empty: OUTPUT_NAMES, or a view's only output."""
    timeout_s: float = math.inf


class InferAnswer(NamedTuple):
    """The outputs, in the order of the request."""

    model: str
    version: str
    parameters: Parameters
    outputs: Sequence[Tensor]


async def infer(service: Service, request: InferRequest, outcome: Outcome) -> InferAnswer:
    """Classify every image of a request; each takes its own permit, and either all are answered or none.

    Cancelling the call cancels all images.

    Raises:
        ServiceError: the request is invalid, or one of its images failed: the first failure.
    """
    received_s = time.monotonic()
    name, view = views.parted(request.model)
    wanted = _wanted(request, view)
    counts = [each.classes for each in wanted]
    include = reduce(or_, (EXTRA_NAMES.get(each.name, Extras.NONE) for each in wanted))
    coverage = _coverage(request.parameters)
    ask = Ask(
        name,
        number(request.version),
        None if None in counts else max(count or 0 for count in counts),
        priority=_priority(request.parameters),
        patience_s=received_s + min(_timeout_s(request.parameters), request.timeout_s),
        include=include,
        coverage=coverage,
        reject=any(each.name == KNOWN_NAME for each in wanted),
    )
    plan = service.plan(ask)
    outcome.model = plan.labels
    specs = inputs_of(view, plan.members)
    images = _images(request.inputs, specs, max_images(service, plan.entry))
    if view in SCALINGS:
        images = list(await asyncio.to_thread(views.unscaled, np.stack(images), view))
    answers = await classify_all(service, plan, images, received_s)
    if coverage is not None:
        answers = _filled_up(answers)
    entry = answers[-1].plan.entry
    classes = [answer.classes for answer in answers]
    outcome.answered(answers)
    return InferAnswer(
        Found(entry, view).name,
        str(entry.version),
        {"random_weights": answers[-1].plan.random_weights, **_answered_by(classes)},
        [_extra(each.name, answers) if each.name in EXTRA_NAMES else _output(each, entry, classes) for each in wanted],
    )


def _answered_by(classes: Sequence[Classes]) -> dict[str, bool | str]:
    """For a cascade: the member that answered each image, comma-separated, and whether any image was cut short."""
    if not classes[0].answered_by:
        return {}
    names = ",".join(each.answered_by for each in classes)
    return {"answered_by": names, "cut_short": any(each.cut_short for each in classes)}


def _wanted(request: InferRequest, view: View) -> list[Wanted]:
    """The outputs to answer.

    Raises:
        ServiceError: INVALID_REQUEST, INVALID_PARAMETER.
    """
    _check_known(request.parameters, (*(() if view else CLASSES), "priority", "timeout", *SEQUENCE, ASKS_FOR_LAST))
    for name in SEQUENCE:
        if request.parameters.get(name):
            raise ServiceError(
                Code.INVALID_PARAMETER, f"{name}: the models here are stateless, so the server accepts no sequences"
            )
    top_k = None if view or "coverage" in request.parameters else _count(request.parameters, "top_k", DEFAULT_TOP_K)
    usual = (SCORES_NAME,) if view else OUTPUT_NAMES
    names = usual if view else (*usual, *EXTRA_NAMES, KNOWN_NAME)
    asked = list(request.outputs) or [RequestedOutput(name, {}) for name in usual]
    if _flag(request.parameters, "reject") and KNOWN_NAME not in [each.name for each in asked]:
        asked.append(RequestedOutput(KNOWN_NAME, {}))
    wanted = []
    for name, parameters in asked:
        if name not in names:
            raise ServiceError(Code.INVALID_REQUEST, f"there is no output {name[:100]!r}; there are {_listed(names)}")
        _check_known(parameters, ("classification",))
        classes = _count(parameters, "classification", 0)
        if classes and name not in RANKED_NAMES:
            raise ServiceError(Code.INVALID_PARAMETER, f"classification is for the output {PROBABILITIES_NAME!r}")
        wanted.append(Wanted(name, classes or top_k, bool(classes)))
    if "coverage" in request.parameters and ("top_k" in request.parameters or any(each.as_text for each in wanted)):
        detail = "coverage decides how many classes there are: leave out top_k and classification"
        raise ServiceError(Code.INVALID_PARAMETER, detail)
    if len({each.name for each in wanted}) < len(wanted):
        raise ServiceError(Code.INVALID_REQUEST, "an output is requested twice")
    return wanted


def _check_known(parameters: Parameters, known: Sequence[str]) -> None:
    """Refuse unknown parameters, which would be ignored.

    Raises:
        ServiceError: INVALID_PARAMETER.
    """
    for name in parameters:
        if name in SHARED_MEMORY:
            raise ServiceError(Code.INVALID_REQUEST, NO_SHARED_MEMORY)
        if name not in known:
            there_are = f"there are {', '.join(known)}" if known else "there are none here"
            raise ServiceError(Code.INVALID_PARAMETER, f"there is no parameter {name[:100]!r}; {there_are}")


def _count(parameters: Parameters, name: str, default: int) -> int:
    value = parameters.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not (value == default or 1 <= value <= MAX_TOP_K):
        raise ServiceError(Code.INVALID_PARAMETER, f"{name} must be a whole number of 1 to {MAX_TOP_K}")
    return value


def _coverage(parameters: Parameters) -> float | None:
    value = parameters.get("coverage")
    if value is None:
        return None
    if isinstance(value, bool | str) or not 0 < value < 1:
        raise ServiceError(Code.INVALID_PARAMETER, "coverage must be a number between 0 and 1, both excluded")
    return float(value)


def _flag(parameters: Parameters, name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise ServiceError(Code.INVALID_PARAMETER, f"{name} must be true or false")
    return value


def _timeout_s(parameters: Parameters) -> float:
    """The parameter `timeout`, in seconds; it is sent in microseconds, with 0 for no limit."""
    value = parameters.get("timeout", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ServiceError(Code.INVALID_PARAMETER, "timeout must be a whole number of microseconds")
    return min(value, 2**53) / 1e6 or math.inf


def _priority(parameters: Parameters) -> Priority | None:
    """Triton's numbering with three levels: 1 goes first, 3 and above last; 0 is the model's default."""
    value = parameters.get("priority", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ServiceError(Code.INVALID_PARAMETER, "priority must be a whole number, 0 or more")
    return {0: None, 1: Priority.HIGH, 2: Priority.NORMAL}.get(value, Priority.LOW)


def _images(inputs: Sequence[Input], specs: Sequence[InputSpec], at_most: int) -> list[Any]:
    """The images of the one input: bytes, or arrays [H, W, 3] of its datatype.

    Raises:
        ServiceError: INVALID_REQUEST.
    """
    by_name = {spec.name: spec for spec in specs}
    if len(inputs) != 1 or inputs[0].name not in by_name:
        sent = _listed([each.name for each in inputs[:10]]) or "none"
        raise ServiceError(Code.INVALID_REQUEST, f"send one input of {_listed([*by_name])}, not {sent}")
    name, datatype, shape, read, parameters = inputs[0]
    _, kind, dims = by_name[name]
    if datatype != kind:
        raise ServiceError(Code.INVALID_REQUEST, f"input {name!r} is {kind}, not {datatype[:100]}")
    _check_known(parameters, ())
    if not shape or (shape[1:] != dims and (name, shape[1:]) != (ENCODED_NAME, ())):
        raise ServiceError(Code.INVALID_REQUEST, f"input {name!r} has shape {[-1, *dims]}, not {[*shape]}")
    count = shape[0]
    if not 1 <= count <= at_most:
        raise ServiceError(Code.INVALID_REQUEST, f"one request may have 1 to {at_most} images, not {count}")
    size = math.prod(shape)
    values = read(size)
    if len(values) != size:
        raise ServiceError(Code.INVALID_REQUEST, f"input {name!r} has {len(values)} elements; its shape says {size}")
    return list(values.reshape(shape)) if isinstance(values, np.ndarray) else list(values)


def _filled_up(answers: Sequence[Answer]) -> list[Answer]:
    """Pad prediction sets of different sizes to rows of one length, and the activation maps with zeros."""
    most = max(len(each.classes.indices) for each in answers)
    mapped = max(len(each.classes.activation_maps) for each in answers)
    found = []
    for each in answers:
        classes = each.classes
        missing, maps = (0, most - len(classes.indices)), classes.activation_maps
        filled = classes._replace(
            probabilities=np.pad(classes.probabilities, missing),
            indices=np.pad(classes.indices, missing, constant_values=NO_CLASS),
            activation_maps=np.concatenate([maps, np.zeros((mapped - len(maps), *maps.shape[1:]), np.float32)]),
        )
        found.append(each._replace(classes=filled))
    return found


def _output(wanted: Wanted, entry: Entry, classes: Sequence[Classes]) -> Tensor:
    name, count, as_text = wanted
    if name == KNOWN_NAME:
        known = np.array([[bool(each.known)] for each in classes])
        return Tensor(name, "BOOL", known.shape, known)
    probabilities = np.stack([each.probabilities[:count] for each in classes])
    indices = np.stack([each.indices[:count] for each in classes])
    if name == INDICES_NAME:
        return Tensor(name, "INT32", indices.shape, indices)
    if name == SCORES_NAME and not as_text:
        scores = np.empty_like(probabilities)
        np.put_along_axis(scores, indices.astype(np.intp), probabilities, 1)
        return Tensor(name, "FP32", scores.shape, scores)
    if name == PROBABILITIES_NAME and not as_text:
        return Tensor(name, "FP32", probabilities.shape, probabilities)
    labels = ["" if index == NO_CLASS else entry.labels[index].label for index in indices.ravel().tolist()]
    if as_text:
        ranked = zip(probabilities.ravel().tolist(), indices.ravel().tolist(), labels, strict=True)
        labels = [f"{probability:f}:{index}:{label}" for probability, index, label in ranked]
    return Tensor(name, "BYTES", indices.shape, [label.encode() for label in labels])


def _extra(name: str, answers: Sequence[Answer]) -> Tensor:
    """The tensor for one of EXTRA_NAMES; all answers have its data."""
    if name == BOXES_NAME:
        values = np.array([each.box for each in answers], np.float32)
    else:
        values = np.stack([getattr(each.classes, name) for each in answers])
    return Tensor(name, "FP32", values.shape, values)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:100]) for name in names)
