"""Parses messages, and converts those of `ModelInfer` and `ModelStreamInfer` to and from `server.v2.infer`."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from server.errors import Code, ServiceError
from server.grpc import inference_pb2 as pb
from server.v2 import models, tensors
from server.v2.infer import InferAnswer, InferRequest, Input, RequestedOutput
from server.v2.tensors import Values

Kind = TypeVar("Kind", bound=Message)
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
MAX_DETAIL = 500
"""Most characters in a status's text: each takes up to 12 bytes on the wire, and clients accept 8 KiB of metadata."""
OF_REST = "binary_data_size"
"""REST's parameter, which KServe's SDK also sends over gRPC."""


def parsed(kind: type[Kind], content: bytes) -> Kind:
    """Parse a message here: gRPC's own parsing would log a client's mistake as an error of this server.

    Raises:
        ServiceError: INVALID_REQUEST.
    """
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise ServiceError(Code.INVALID_REQUEST, f"the message cannot be read: {error}") from None


def shortened(detail: str) -> str:
    """A text, which may quote a request, cut to MAX_DETAIL for a status."""
    return detail if len(detail) <= MAX_DETAIL else f"{detail[:MAX_DETAIL]}..."


def read(content: bytes, timeout_s: float | None) -> tuple[InferRequest, str]:
    """A request and its id.

    Raises:
        ServiceError: INVALID_REQUEST, INVALID_PARAMETER.
    """
    asked = parsed(pb.ModelInferRequest, content)
    if not asked.model_name:
        raise ServiceError(Code.INVALID_REQUEST, "the request names no model")
    request = InferRequest(
        asked.model_name,
        asked.model_version,
        parameters(asked.parameters),
        _inputs(asked),
        [RequestedOutput(each.name, parameters(each.parameters)) for each in asked.outputs],
        math.inf if timeout_s is None else timeout_s,
    )
    return request, asked.id


def written(answer: InferAnswer, request_id: str) -> pb.ModelInferResponse:
    """The response to the request with that id."""
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=answer.version,
        id=request_id,
        parameters={name: _parameter(value) for name, value in answer.parameters.items()},
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name=each.name, datatype=each.datatype, shape=each.shape)
            for each in answer.outputs
        ],
        raw_output_contents=[tensors.to_raw(each.values) for each in answer.outputs],
    )


def parameters(
    sent: Mapping[str, pb.InferParameter] | Mapping[str, pb.ModelRepositoryParameter],
) -> dict[str, Any]:
    """The parameters' values.

    Raises:
        ServiceError: INVALID_PARAMETER, one has no value.
    """
    kinds = {name: value.WhichOneof("parameter_choice") for name, value in sent.items()}
    if valueless := [name for name, kind in kinds.items() if kind is None]:
        raise ServiceError(Code.INVALID_PARAMETER, f"the parameter {valueless[0][:100]!r} has no value")
    return {name: getattr(sent[name], kind) for name, kind in kinds.items() if kind}


def _parameter(value: object) -> pb.InferParameter:
    return (
        pb.InferParameter(string_param=value) if isinstance(value, str) else pb.InferParameter(bool_param=bool(value))
    )


def _inputs(asked: pb.ModelInferRequest) -> list[Input]:
    """Each input with a function that reads its elements; either all are raw or none.

    Raises:
        ServiceError: INVALID_REQUEST, INVALID_PARAMETER.
    """
    raw = asked.raw_input_contents
    if any(models.SHARED_MEMORY & each.parameters.keys() for each in asked.inputs):
        raise ServiceError(Code.INVALID_REQUEST, models.NO_SHARED_MEMORY)
    if raw and len(raw) != len(asked.inputs):
        detail = f"{len(asked.inputs)} inputs have {len(raw)} raw_input_contents; there must be one for each, or none"
        raise ServiceError(Code.INVALID_REQUEST, detail)
    if raw and any(each.HasField("contents") for each in asked.inputs):
        raise ServiceError(Code.INVALID_REQUEST, "an input has contents beside raw_input_contents; send one of the two")
    readers: list[Callable[[int], Values]] = [
        partial(tensors.from_raw, each.datatype, raw[index]) if raw else partial(_from_fields, each)
        for index, each in enumerate(asked.inputs)
    ]
    found = []
    for index, (each, reader) in enumerate(zip(asked.inputs, readers, strict=True)):
        others = parameters(each.parameters)
        if raw and others.get(OF_REST) == len(raw[index]):
            del others[OF_REST]
        found.append(Input(each.name, each.datatype, tuple(each.shape), reader, others))
    return found


def _from_fields(sent: pb.ModelInferRequest.InferInputTensor, _: int) -> Values:
    if sent.datatype == "BYTES":
        return list(sent.contents.bytes_contents)
    if sent.datatype == "FP32":
        return tensors.floats_from_list(sent.contents.fp32_contents)
    return tensors.numbers_from_list(sent.contents.uint_contents)
