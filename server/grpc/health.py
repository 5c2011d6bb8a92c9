"""`grpc.health.v1`: what Kubernetes, balancers and clients ask."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import DESCRIPTOR, HealthCheckRequest, HealthCheckResponse

from server.errors import Code, ServiceError
from server.grpc.inference_pb2 import DESCRIPTOR as INFERENCE
from server.grpc.streams import Streams
from server.serving.service import Service
from server.v2 import models

SERVICE = DESCRIPTOR.services_by_name["Health"].full_name
WHOLE = ("", INFERENCE.services_by_name["GRPCInferenceService"].full_name)
"""What a call names to ask for the whole server. Any other name is a model's."""

Context = grpc.aio.ServicerContext[Any, Any]


def handlers(service: Service, streams: Streams) -> grpc.GenericRpcHandler:
    """Both calls."""

    async def check(asked: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        found = _status(service, asked.service)
        if found == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service or model {asked.service!r} here")
        return HealthCheckResponse(status=found)

    async def watch(asked: HealthCheckRequest, context: Context) -> AsyncIterator[HealthCheckResponse]:
        last = None
        async with streams.one(context):
            while True:
                change = service.change
                if (found := _status(service, asked.service)) != last:
                    last = found
                    yield HealthCheckResponse(status=found)
                await change.wait()

    read, write = HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Check": grpc.unary_unary_rpc_method_handler(check, read, write),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, read, write),
        },
    )


def _status(service: Service, name: str) -> Any:
    """A `ServingStatus`. Where there are keys, models are for who has one: `ModelReady` tells of them."""
    ready, not_ready = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
    if name in WHOLE:
        return ready if service.why_not_ready() is None else not_ready
    if service.keys:
        return HealthCheckResponse.SERVICE_UNKNOWN
    try:
        return ready if models.is_ready(service, name, "") else not_ready
    except ServiceError as error:
        return HealthCheckResponse.SERVICE_UNKNOWN if error.code is Code.UNKNOWN_MODEL else not_ready
