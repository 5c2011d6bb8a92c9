"""`grpc.health.v1`: the health service that Kubernetes, load balancers and clients call."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import DESCRIPTOR, HealthCheckRequest, HealthCheckResponse

from server.errors import Code, ServiceError
from server.grpc.messages import SERVICE as INFERENCE
from server.grpc.messages import parsed
from server.grpc.streams import Context, Refuse, Streams
from server.serving.service import Service
from server.v2 import models

SERVICE = DESCRIPTOR.services_by_name["Health"].full_name
WHOLE = ("", INFERENCE)
"""Service names that stand for the whole server. Any other name is a model's."""


def handlers(service: Service, streams: Streams, refuse: Refuse) -> grpc.GenericRpcHandler:
    """Handlers of `Check` and `Watch`."""

    async def asked_for(content: bytes, context: Context) -> str:
        try:
            name: str = parsed(HealthCheckRequest, content).service
        except ServiceError as error:
            await refuse(context, error)
            raise
        return name

    async def check(content: bytes, context: Context) -> HealthCheckResponse:
        name = await asked_for(content, context)
        found = _status(service, name)
        if found == HealthCheckResponse.SERVICE_UNKNOWN:
            await refuse(context, ServiceError(Code.UNKNOWN_MODEL, f"there is no service or model {name!r} here"))
        return HealthCheckResponse(status=found)

    async def watch(content: bytes, context: Context) -> AsyncIterator[HealthCheckResponse]:
        name, last = await asked_for(content, context), None
        async with streams.one(context):
            while True:
                change = service.change
                if (found := _status(service, name)) != last:
                    last = found
                    yield HealthCheckResponse(status=found)
                await change.wait()

    write = HealthCheckResponse.SerializeToString
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Check": grpc.unary_unary_rpc_method_handler(check, None, write),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, None, write),
        },
    )


def _status(service: Service, name: str) -> Any:
    """A `ServingStatus`. If the server has keys, models are unknown here, as probes need none: ask `ModelReady`."""
    ready, not_ready = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
    if name in WHOLE:
        return ready if service.why_not_ready() is None else not_ready
    if service.keys:
        return HealthCheckResponse.SERVICE_UNKNOWN
    try:
        return ready if models.is_ready(service, name, "") else not_ready
    except ServiceError as error:
        return HealthCheckResponse.SERVICE_UNKNOWN if error.code is Code.UNKNOWN_MODEL else not_ready
