"""One inference request of the protocol: N images in one tensor, their classes in others."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from models.manifest import INDICES_NAME, INPUT_NAME, MAX_TOP_K, PROBABILITIES_NAME, Entry
from server.engine.classes import Classes
from server.engine.decoding import Image
from server.engine.scheduler import Priority
from server.errors import Code, ServiceError
from server.serving.outcomes import Outcome
from server.serving.plan import DEFAULT_TOP_K, Ask
from server.serving.service import Service
from server.serving.several import classify_all
from server.v2.models import ENCODED_NAME, LABELS_NAME, input_shape, max_images, number
from server.v2.tensors import Tensor, Values

OUTPUT_NAMES = (PROBABILITIES_NAME, INDICES_NAME, LABELS_NAME)

Parameters = Mapping[str, bool | int | float | str]


class Input(NamedTuple):
    """A tensor that was sent. `read` gets the number of elements that its shape says, and checks little else."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    read: Callable[[int], Values]


class RequestedOutput(NamedTuple):
    """A tensor that is wanted."""

    name: str
    parameters: Parameters


class InferRequest(NamedTuple):
    """What was asked, and the time that the client gives it besides its parameter `timeout`."""

    model: str
    version: str
    parameters: Parameters
    inputs: Sequence[Input]
    outputs: Sequence[RequestedOutput]
    """Empty: all."""
    timeout_s: float = math.inf


class InferAnswer(NamedTuple):
    """The outputs, in the order of the request."""

    model: str
    version: str
    parameters: Parameters
    outputs: Sequence[Tensor]


async def infer(service: Service, request: InferRequest, outcome: Outcome) -> InferAnswer:
    """Classify every image of a request; each takes a permit of its own, and all are answered or none.

    Cancelling the call gives all of them up.

    Raises:
        ServiceError: the request is wrong, or the first failure of one of its images.
    """
    received_s = time.monotonic()
    wanted = _wanted(request)
    ask = Ask(
        request.model,
        number(request.version),
        max(count for _, count, _ in wanted),
        priority=_priority(request.parameters),
        patience_s=received_s + min(_timeout_s(request.parameters), request.timeout_s),
    )
    plan = service.plan(ask)
    outcome.model = plan.entry.name
    images = _images(request.inputs, input_shape(plan.members), max_images(service, plan.members))
    answers = await classify_all(service, plan, images, received_s)
    entry = answers[-1].plan.entry
    classes = [answer.classes for answer in answers]
    outcome.answered(entry.name, max(answer.total_s for answer in answers))
    return InferAnswer(
        entry.name,
        str(entry.version),
        {"random_weights": answers[-1].plan.random_weights},
        [_output(name, count, entry, classes, as_text=as_text) for name, count, as_text in wanted],
    )


def _wanted(request: InferRequest) -> list[tuple[str, int, bool]]:
    """(name, classes, whether as text) of each output.

    Raises:
        ServiceError: INVALID_REQUEST, INVALID_PARAMETER.
    """
    top_k = _count(request.parameters, "top_k", DEFAULT_TOP_K)
    wanted = []
    for name, parameters in request.outputs or [RequestedOutput(name, {}) for name in OUTPUT_NAMES]:
        if name not in OUTPUT_NAMES:
            raise ServiceError(Code.INVALID_REQUEST, f"there is no output {name!r}; there are {_listed(OUTPUT_NAMES)}")
        classes = _count(parameters, "classification", 0)
        if classes and name != PROBABILITIES_NAME:
            raise ServiceError(Code.INVALID_PARAMETER, f"classification is for the output {PROBABILITIES_NAME!r}")
        wanted.append((name, classes or top_k, bool(classes)))
    if len({name for name, _, _ in wanted}) < len(wanted):
        raise ServiceError(Code.INVALID_REQUEST, "an output is requested twice")
    return wanted


def _count(parameters: Parameters, name: str, default: int) -> int:
    value = parameters.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not (value == default or 1 <= value <= MAX_TOP_K):
        raise ServiceError(Code.INVALID_PARAMETER, f"{name} must be a whole number of 1 to {MAX_TOP_K}")
    return value


def _timeout_s(parameters: Parameters) -> float:
    """The parameter is in microseconds; 0 is none."""
    value = parameters.get("timeout", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ServiceError(Code.INVALID_PARAMETER, "timeout must be a whole number of microseconds")
    return min(value, 2**53) / 1e6 or math.inf


def _priority(parameters: Parameters) -> Priority | None:
    """As Triton counts with three levels: 1 goes first, 3 and more last; 0 is the model's default."""
    value = parameters.get("priority", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ServiceError(Code.INVALID_PARAMETER, "priority must be a whole number, 0 or more")
    return {0: None, 1: Priority.HIGH, 2: Priority.NORMAL}.get(value, Priority.LOW)


def _images(inputs: Sequence[Input], pixels: tuple[int, int, int] | None, at_most: int) -> list[Image]:
    """The images of the one input.

    Raises:
        ServiceError: INVALID_REQUEST.
    """
    names = [*([INPUT_NAME] if pixels else []), ENCODED_NAME]
    if len(inputs) != 1 or inputs[0].name not in names:
        sent = _listed([each.name for each in inputs[:10]]) or "none"
        raise ServiceError(Code.INVALID_REQUEST, f"send one input of {_listed(names)}, not {sent}")
    name, datatype, shape, read = inputs[0]
    kind, dims = ("UINT8", pixels) if name == INPUT_NAME else ("BYTES", ())
    if datatype != kind:
        raise ServiceError(Code.INVALID_REQUEST, f"input {name!r} is {kind}, not {datatype}")
    if not shape or (shape[1:] != dims and (name, shape[1:]) != (ENCODED_NAME, (1,))):
        raise ServiceError(Code.INVALID_REQUEST, f"input {name!r} has shape {[-1, *(dims or ())]}, not {[*shape]}")
    count = shape[0]
    if not 1 <= count <= at_most:
        raise ServiceError(Code.INVALID_REQUEST, f"one request may have 1 to {at_most} images, not {count}")
    size = math.prod(shape)
    values = read(size)
    if len(values) != size:
        raise ServiceError(Code.INVALID_REQUEST, f"input {name!r} has {len(values)} elements; its shape says {size}")
    return list(values.reshape(shape)) if isinstance(values, np.ndarray) else list(values)


def _output(name: str, count: int, entry: Entry, classes: Sequence[Classes], *, as_text: bool) -> Tensor:
    probabilities = np.stack([each.probabilities[:count] for each in classes])
    indices = np.stack([each.indices[:count] for each in classes])
    if name == INDICES_NAME:
        return Tensor(name, "INT32", indices.shape, indices)
    if name == PROBABILITIES_NAME and not as_text:
        return Tensor(name, "FP32", probabilities.shape, probabilities)
    labels = [entry.labels[index].label for index in indices.ravel().tolist()]
    if as_text:
        ranked = zip(probabilities.ravel().tolist(), indices.ravel().tolist(), labels, strict=True)
        labels = [f"{probability:f}:{index}:{label}" for probability, index, label in ranked]
    return Tensor(name, "BYTES", indices.shape, [label.encode() for label in labels])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:100]) for name in names)
