"""The Open Inference Protocol over REST: routes, JSON, and the extension that appends binary tensors to the JSON."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.status import HTTP_501_NOT_IMPLEMENTED, HTTP_503_SERVICE_UNAVAILABLE

from server.errors import Code, ServiceError
from server.http import bodies, request_ids
from server.http.disconnects import cancelled_when_gone, counted
from server.http.fields import field
from server.http.request_ids import request_id_of
from server.http.uploads import Uploads
from server.serving.plan import Ask
from server.serving.service import Service
from server.v2 import models, tensors, views
from server.v2.infer import InferAnswer, InferRequest, Input, RequestedOutput, infer
from server.v2.tensors import Values

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header with the bytes of JSON at the start of the body; the rest are the binary tensors in order."""
MAX_JSON_BYTES = 4 * 2**20
"""About five images. Parsed numbers take up to 20 times the memory of their text, and event loop time to parse."""

Kind = TypeVar("Kind")
_Parameters = dict[str, bool | int | float | str]


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Refuses unknown fields."""


class InferInput(_Strict):
    """A tensor: `data`, or the parameter `binary_data_size` for bytes after the JSON."""

    name: str
    datatype: str
    shape: Annotated[list[int], msgspec.Meta(max_length=8)]
    parameters: _Parameters = {}
    data: Annotated[list[Any], msgspec.Meta(extra_json_schema={"items": {}})] | msgspec.UnsetType = msgspec.UNSET


class InferOutput(_Strict):
    """A requested output."""

    name: str
    parameters: _Parameters = {}


class Infer(_Strict):
    """A request to classify."""

    inputs: Annotated[list[InferInput], msgspec.Meta(max_length=16)]
    outputs: Annotated[list[InferOutput], msgspec.Meta(max_length=16)] = []
    id: str = ""
    parameters: _Parameters = {}
    model_name: str | None = None
    """KServe's SDK repeats the name here; if given, it must be the one in the path."""


class Load(_Strict):
    """A request to load or unload a model."""

    parameters: dict[str, Any] = {}


class Index(_Strict):
    """A request for the index; `ready`: list only models that are ready."""

    ready: bool = False


def router(service: Service, uploads: Uploads) -> APIRouter:
    """The routes, bound to one HTTP worker's service."""
    routes = APIRouter(prefix="/v2")

    @routes.get("")
    @routes.get("/", include_in_schema=False)
    async def server_metadata() -> Response:
        return _json(models.server_metadata())

    @routes.get("/health/live")
    async def live() -> Response:
        return _json({"live": True})

    @routes.get("/health/ready")
    async def ready() -> Response:
        if reason := service.why_not_ready():
            return _json({"ready": False, "error": reason}, HTTP_503_SERVICE_UNAVAILABLE)
        return _json({"ready": True})

    @routes.get("/models/stats", name="all_statistics")
    @routes.get("/models/{name}/stats")
    @routes.get("/models/{name}/versions/{version}/stats")
    def statistics(name: str = "", version: str = "") -> Response:
        return _json(models.statistics(service, name, version))

    @routes.get("/models/{name}")
    @routes.get("/models/{name}/versions/{version}")
    async def metadata(name: str, version: str = "") -> Response:
        return _json(models.metadata(service, models.find(service, name, version)))

    @routes.get("/models/{name}/config")
    @routes.get("/models/{name}/versions/{version}/config")
    async def config(name: str, version: str = "") -> Response:
        return _json(models.config(service, models.find(service, name, version)))

    @routes.get("/models/{name}/ready")
    @routes.get("/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str = "") -> Response:
        is_ready = models.is_ready(service, name, version)
        return _json({"name": name, "ready": is_ready}, 200 if is_ready else HTTP_503_SERVICE_UNAVAILABLE)

    @routes.post("/models/{name}/infer")
    @routes.post("/models/{name}/versions/{version}/infer")
    async def model_infer(request: Request, name: str, version: str = "") -> Response:
        with counted(service.metrics) as outcome:
            bodies.check_no_query(request)
            service.admit(Ask(views.parted(name)[0], models.number(version)), outcome)
            async with uploads.body(request) as body:
                asked, binary = _split(body, field(request.scope, HEADER_LENGTH.lower().encode()))
                if asked.model_name not in (None, name):
                    raise ServiceError(Code.INVALID_REQUEST, "model_name differs from the name in the path")
                outputs, are_binary = _outputs(asked)
                _, parameters = _taken(asked.parameters, "binary_data_output", default=False)
                wanted = InferRequest(name, version, parameters, _inputs(asked, binary), outputs)
                async with cancelled_when_gone(request):
                    answer = await infer(service, wanted, outcome)
        return _answer(asked.id, answer, are_binary, {request_ids.HEADER: request_id_of(request)})

    @routes.post("/repository/index")
    async def index(request: Request) -> Response:
        async with uploads.body(request) as body:
            asked = _decoded(body, Index) if body else Index()
        return _json(models.index(service, ready=asked.ready))

    @routes.post("/repository/models/{name}/load")
    async def load(request: Request, name: str) -> Response:
        _check_origin(request)
        async with uploads.body(request) as body:
            models.check_load((_decoded(body, Load) if body else Load()).parameters)
        await service.changes.ask(name, "load")
        return Response()

    @routes.post("/repository/models/{name}/unload")
    async def unload(request: Request, name: str) -> Response:
        _check_origin(request)
        async with uploads.body(request) as body:
            models.check_unload((_decoded(body, Load) if body else Load()).parameters)
        await service.changes.ask(name, "unload")
        return Response()

    @routes.post("/{kind}sharedmemory/unregister", include_in_schema=False)
    @routes.post("/{kind}sharedmemory/region/{name}/unregister", include_in_schema=False)
    async def unregister() -> Response:
        return Response()  # clients unregister everything when they start, and nothing is registered

    @routes.post("/{kind}sharedmemory/region/{name}/register", include_in_schema=False)
    async def register() -> Response:
        raise HTTPException(HTTP_501_NOT_IMPLEMENTED, models.NO_SHARED_MEMORY)

    return routes


def _check_origin(request: Request) -> None:
    """Keep other sites' pages, open in a browser that can reach this server, from loading and unloading models.

    Browsers declare where a request comes from (W3C, Fetch Metadata); other programs do not.

    Raises:
        ServiceError: FORBIDDEN.
    """
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise ServiceError(Code.FORBIDDEN, "pages of other sites may not load or unload models")


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _decoded(content: bytes | memoryview, kind: type[Kind]) -> Kind:
    """Decode JSON of limited size.

    Raises:
        ServiceError: EMPTY_BODY, BODY_TOO_LARGE, INVALID_REQUEST.
    """
    if not content:
        raise ServiceError(Code.EMPTY_BODY, "the request has no JSON; send it as the body")
    if len(content) > MAX_JSON_BYTES:
        detail = f"JSON may have at most {MAX_JSON_BYTES} bytes: send tensors as binary data"
        raise ServiceError(Code.BODY_TOO_LARGE, detail)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ServiceError(Code.INVALID_REQUEST, f"the request cannot be read: {error}") from None


def _split(body: bytes, header_length: str | None) -> tuple[Infer, memoryview]:
    """The JSON of a request, and the binary tensors after it."""
    end = len(body)
    if header_length is not None:
        usable = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
        if not usable or int(header_length) > len(body):
            detail = f"{HEADER_LENGTH} must be the number of bytes of JSON that the body of {len(body)} begins with"
            raise ServiceError(Code.INVALID_REQUEST, detail)
        end = int(header_length)
    content = memoryview(body)
    return _decoded(content[:end], Infer), content[end:]


def _inputs(asked: Infer, binary: memoryview) -> list[Input]:
    """Each input with a function that reads its elements, to be called only after its shape has been checked."""
    inputs = []
    start = 0
    for each in asked.inputs:
        parameters = dict(each.parameters)
        size = parameters.pop("binary_data_size", None)
        if parameters.keys() & models.SHARED_MEMORY:
            raise ServiceError(Code.INVALID_REQUEST, models.NO_SHARED_MEMORY)
        if (size is None) == (each.data is msgspec.UNSET):
            detail = f"input {each.name[:100]!r} must have either data or the parameter binary_data_size"
            raise ServiceError(Code.INVALID_REQUEST, detail)
        if size is None:
            read: Callable[[int], Values] = partial(_from_list, each)
        elif not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary) - start:
            detail = f"binary_data_size of input {each.name[:100]!r} is not a number of bytes that follow the JSON"
            raise ServiceError(Code.INVALID_REQUEST, detail)
        else:
            read = partial(tensors.from_raw, each.datatype, binary[start : start + size])
            start += size
        inputs.append(Input(each.name, each.datatype, tuple(each.shape), read, parameters))
    if start < len(binary):
        raise ServiceError(Code.INVALID_REQUEST, f"{len(binary) - start} bytes after the JSON belong to no input")
    return inputs


def _from_list(sent: InferInput, _: int) -> Values:
    return tensors.from_list(sent.datatype, sent.data)


def _outputs(asked: Infer) -> tuple[list[RequestedOutput], Callable[[str], bool]]:
    """The requested outputs, and a function that tells whether an output is requested in binary.

    Raises:
        ServiceError: INVALID_PARAMETER.
    """
    all_binary, _ = _taken(asked.parameters, "binary_data_output", default=False)
    outputs, binary = [], set()
    for each in asked.outputs:
        is_binary, parameters = _taken(each.parameters, "binary_data", default=all_binary)
        outputs.append(RequestedOutput(each.name, parameters))
        if is_binary:
            binary.add(each.name)
    return outputs, binary.__contains__ if outputs else lambda _: all_binary


def _taken(parameters: _Parameters, name: str, *, default: bool) -> tuple[bool, _Parameters]:
    """The value of one flag, and the other parameters.

    Raises:
        ServiceError: INVALID_PARAMETER.
    """
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ServiceError(Code.INVALID_PARAMETER, f"{name} must be true or false")
    return value, {other: each for other, each in parameters.items() if other != name}


def _answer(
    request_id: str, answer: InferAnswer, is_binary: Callable[[str], bool], headers: Mapping[str, str]
) -> Response:
    """JSON, followed by the outputs requested in binary."""
    listed, binary = [], []
    for output in answer.outputs:
        shown: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if is_binary(output.name):
            binary.append(tensors.to_raw(output.values))
            shown["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            shown["data"] = tensors.to_list(output.values)
        listed.append(shown)
    head = msgspec.json.encode(
        {
            "model_name": answer.model,
            "model_version": answer.version,
            **({"id": request_id} if request_id else {}),
            "parameters": answer.parameters,
            "outputs": listed,
        }
    )
    if not binary:
        return Response(head, headers=dict(headers), media_type="application/json")
    headers = {**headers, HEADER_LENGTH: str(len(head))}
    return Response(b"".join((head, *binary)), headers=headers, media_type="application/octet-stream")
