"""The gRPC server and its calls. Only this module maps failures to gRPC statuses."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from server import tracing
from server.errors import Code, ServiceError
from server.grpc import health, messages, reflection
from server.grpc import inference_pb2 as pb
from server.grpc.infer_streams import InferStreams
from server.grpc.keys import KeyCheck
from server.grpc.messages import SERVICE
from server.grpc.streams import MAX_STREAMS, Context, Streams
from server.serving.outcomes import Outcome
from server.serving.service import Service
from server.settings import Settings
from server.tls import Certificate
from server.v2 import models
from server.v2.infer import infer

STATUS: dict[Code, grpc.StatusCode] = {
    Code.EMPTY_BODY: grpc.StatusCode.INVALID_ARGUMENT,
    Code.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNSUPPORTED_ENCODING: grpc.StatusCode.INVALID_ARGUMENT,
    Code.MALFORMED_MULTIPART: grpc.StatusCode.INVALID_ARGUMENT,
    Code.INVALID_PARAMETER: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNSUPPORTED_BY_MODEL: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    Code.BODY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.BODY_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.TOO_MANY_PIXELS: grpc.StatusCode.INVALID_ARGUMENT,
    Code.NOT_AN_IMAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Code.BROKEN_IMAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    Code.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Code.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.INFERENCE_FAILED: grpc.StatusCode.INTERNAL,
    Code.ENGINE_CRASHED: grpc.StatusCode.INTERNAL,
    Code.MODEL_REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Code.NOT_CALIBRATED: grpc.StatusCode.FAILED_PRECONDITION,
    Code.ENGINE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.MODEL_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""The stable code itself is sent as trailing metadata, `code`."""

PROBES = 16
"""Room for health calls on top of `max_connections` calls and the streams."""
KEEPALIVE_MS = 60_000
"""How often the server pings an idle connection to check that its client is there."""
MIN_PING_MS = 10_000
"""Least interval between a client's pings. The library's default, five minutes, disconnects common clients."""
Kind = TypeVar("Kind")
_Answer = Callable[[Service, Any], Awaitable[models.Json]]

log = logging.getLogger(__name__)


class Server:
    """Accepts calls until it is stopped."""

    def __init__(self, server: grpc.aio.Server, streams: Streams) -> None:
        self._server = server
        self._streams = streams

    async def stop(self, grace_s: float) -> None:
        """Accept no more calls, and wait up to `grace_s` for those in progress."""
        self._streams.end()
        await self._server.stop(grace_s)


class _Room:
    """Limits the calls that may take long, so that probes always find room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    @contextmanager
    def taken(self) -> Generator[None]:
        """Count the block as one call.

        Raises:
            ServiceError: QUEUE_FULL.
        """
        if self._taken >= self._most:
            raise ServiceError(Code.QUEUE_FULL, "this worker has max_connections calls under way: retry later")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


async def start(service: Service, address: str) -> Server:
    """Accept calls at `address`, which other processes share; the caller stops the server.

    Raises:
        RuntimeError: the server cannot bind the address.
    """
    settings = service.settings
    server = grpc.aio.server(
        interceptors=[KeyCheck(service, service.keys, _refuse)] if service.keys else None,
        options=_options(settings),
        maximum_concurrent_rpcs=_most_calls(settings),
    )
    room, streams = _Room(settings.max_connections), Streams()
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(
            partial(_call, service, name, room), None, CALLS[name][1].SerializeToString
        )
        for name in CALLS
    }
    # On the wire one message is a stream of one. Handled as a stream, it is received only when `_receive` reads it.
    handlers["ModelInfer"] = grpc.stream_unary_rpc_method_handler(
        _Infer(service, room).model_infer, None, pb.ModelInferResponse.SerializeToString
    )
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        InferStreams(service, streams).model_stream_infer, None, pb.ModelStreamInferResponse.SerializeToString
    )
    for memory in ("System", "Cuda"):
        handlers[f"{memory}SharedMemoryRegister"] = grpc.unary_unary_rpc_method_handler(_register)
        handlers[f"{memory}SharedMemoryUnregister"] = grpc.unary_unary_rpc_method_handler(_unregister)
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(SERVICE, handlers),
            health.handlers(service, streams, _refuse),
            *reflection.handlers([SERVICE, health.SERVICE], streams, _refuse),
        ]
    )
    if first := service.certificate:
        credentials = grpc.dynamic_ssl_server_credentials(_shown(first), lambda: _shown(service.certificate or first))
        server.add_secure_port(address, credentials)
    else:
        server.add_insecure_port(address)
    await server.start()
    return Server(server, streams)


def _options(settings: Settings) -> list[tuple[str, int]]:
    """gRPC's options (docs/reference/defaults.md lists those left at their defaults)."""
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.max_body_bytes),  # also after decompression
        ("grpc.server_handshake_timeout_ms", max(1, round(settings.header_timeout_ms))),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", _most_calls(settings)),  # per connection
        ("grpc.max_connection_idle_ms", max(1, round(settings.keep_alive_ms))),
        # Detect clients that vanished, and let clients ping the server as well.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MS),
    ]


def _most_calls(settings: Settings) -> int:
    return settings.max_connections + MAX_STREAMS + PROBES


def _shown(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(certificate.key, certificate.chain)])


async def _live(_service: Service, _: pb.ServerLiveRequest) -> models.Json:
    return {"live": True}


async def _ready(service: Service, _: pb.ServerReadyRequest) -> models.Json:
    return {"ready": service.why_not_ready() is None}


async def _model_ready(service: Service, asked: pb.ModelReadyRequest) -> models.Json:
    try:
        return {"ready": models.is_ready(service, asked.name, asked.version)}
    except ServiceError:  # clients of this call expect no errors, only false
        return {"ready": False}


async def _server_metadata(_service: Service, _: pb.ServerMetadataRequest) -> models.Json:
    return models.server_metadata()


async def _metadata(service: Service, asked: pb.ModelMetadataRequest) -> models.Json:
    return models.metadata(service, models.find(service, asked.name, asked.version))


async def _config(service: Service, asked: pb.ModelConfigRequest) -> models.Json:
    return {"config": models.config(service, models.find(service, asked.name, asked.version))}


async def _statistics(service: Service, asked: pb.ModelStatisticsRequest) -> models.Json:
    return await asyncio.to_thread(models.statistics, service, asked.name, asked.version)


async def _index(service: Service, asked: pb.RepositoryIndexRequest) -> models.Json:
    _check_repository(asked.repository_name)
    return {"models": models.index(service, ready=asked.ready)}


async def _load(service: Service, asked: pb.RepositoryModelLoadRequest) -> models.Json:
    _check_repository(asked.repository_name)
    models.check_load(asked.parameters)
    await service.changes.ask(asked.model_name, "load")
    return {}


async def _unload(service: Service, asked: pb.RepositoryModelUnloadRequest) -> models.Json:
    _check_repository(asked.repository_name)
    models.check_unload(messages.parameters(asked.parameters))
    await service.changes.ask(asked.model_name, "unload")
    return {}


def _check_repository(name: str) -> None:
    """Refuse a repository name: the only repository has none.

    Raises:
        ServiceError: INVALID_PARAMETER.
    """
    if name:
        raise ServiceError(Code.INVALID_PARAMETER, f"there is one repository here, and none called {name[:100]!r}")


async def _register(_: bytes, context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, models.NO_SHARED_MEMORY)


async def _unregister(_: bytes, _context: Context) -> bytes:
    return b""  # clients unregister everything when they start, and nothing is registered


CALLS: dict[str, tuple[type[Message], type[Message], _Answer]] = {
    "ServerLive": (pb.ServerLiveRequest, pb.ServerLiveResponse, _live),
    "ServerReady": (pb.ServerReadyRequest, pb.ServerReadyResponse, _ready),
    "ModelReady": (pb.ModelReadyRequest, pb.ModelReadyResponse, _model_ready),
    "ServerMetadata": (pb.ServerMetadataRequest, pb.ServerMetadataResponse, _server_metadata),
    "ModelMetadata": (pb.ModelMetadataRequest, pb.ModelMetadataResponse, _metadata),
    "ModelConfig": (pb.ModelConfigRequest, pb.ModelConfigResponse, _config),
    "ModelStatistics": (pb.ModelStatisticsRequest, pb.ModelStatisticsResponse, _statistics),
    "RepositoryIndex": (pb.RepositoryIndexRequest, pb.RepositoryIndexResponse, _index),
    "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse, _load),
    "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse, _unload),
}


async def _call(service: Service, name: str, room: _Room, content: bytes, context: Context) -> Message:
    request, response, answer = CALLS[name]

    async def message() -> Message:
        with nullcontext() if answer in (_live, _ready) else room.taken():
            return ParseDict(await answer(service, messages.parsed(request, content)), response())

    return await _answered(context, message())


async def _answered(context: Context, answer: Awaitable[Kind]) -> Kind:
    """Await the answer; on failure abort the call with the failure's status."""
    try:
        return await answer
    except ServiceError as error:
        tracing.note(error.code)
        return await _refuse(context, error)
    except Exception:
        log.exception("a gRPC call failed")
        return await context.abort(grpc.StatusCode.INTERNAL, "an internal error of the server; see its log")


async def _refuse(context: Context, error: ServiceError) -> NoReturn:
    metadata = [("code", error.code.value)]
    if error.retry_after_s is not None:
        metadata.append(("retry-after", str(error.retry_after_s)))
    await context.abort(STATUS[error.code], messages.shortened(error.detail), tuple(metadata))


class _Infer:
    """`ModelInfer`. Limits how many messages are received at one time, as they are large."""

    def __init__(self, service: Service, room: _Room) -> None:
        settings = service.settings
        self._service = service
        self._room = room
        self._body_timeout_s = settings.body_timeout_ms / 1e3
        self._receiving = asyncio.Semaphore(max(1, settings.max_buffered_bytes // settings.max_body_bytes))
        """Held while a message is received. Other clients' messages wait in bounded flow-control windows."""

    async def model_infer(self, _: object, context: Context) -> pb.ModelInferResponse:
        with tracing.call(f"{SERVICE}/ModelInfer", context.invocation_metadata()):
            return await _answered(context, self._infer(context))

    async def _infer(self, context: Context) -> pb.ModelInferResponse:
        service = self._service
        with Outcome(service.metrics) as outcome, self._room.taken():
            service.shed()
            content = await self._receive(context)
            with service.buffers.held(len(content)):
                request, request_id = messages.read(content, context.time_remaining())
                del content  # its tensors are in the request
                return messages.written(await infer(service, request, outcome), request_id)

    async def _receive(self, context: Context) -> bytes:
        """Receive the call's message.

        Raises:
            ServiceError: BODY_TIMEOUT, INVALID_REQUEST.
        """
        try:
            async with asyncio.timeout(self._body_timeout_s), self._receiving:
                content = await context.read()
        except TimeoutError:
            detail = f"the request took longer than {self._body_timeout_s:g} seconds"
            raise ServiceError(Code.BODY_TIMEOUT, detail) from None
        if not isinstance(content, bytes):
            raise ServiceError(Code.INVALID_REQUEST, "the call has no message")
        return content
