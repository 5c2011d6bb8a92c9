"""Server reflection: tools such as grpcurl ask the server for the message types of its calls."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.json_format import MessageToJson, Parse
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha._async import ReflectionServicer

from server.errors import ServiceError
from server.grpc.messages import parsed
from server.grpc.streams import Context, Refuse, Streams

ALPHA = pb.DESCRIPTOR.services_by_name["ServerReflection"].full_name
SERVICE = ALPHA.replace("v1alpha", "v1")
"""The stable version: the same messages under another name."""
PATIENCE_S = 60.0
"""How long one call may last: tools ask a few questions, then end it."""


def handlers(services: Sequence[str], streams: Streams, refuse: Refuse) -> list[grpc.GenericRpcHandler]:
    """Handlers of both versions, which describe `services` and themselves."""
    _describe_v1()
    servicer = ReflectionServicer([*services, SERVICE, ALPHA])

    async def requests(contents: AsyncIterator[bytes]) -> AsyncIterator[pb.ServerReflectionRequest]:
        async for content in contents:
            yield parsed(pb.ServerReflectionRequest, content)

    async def info(contents: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        answers = servicer.ServerReflectionInfo(requests(contents), context)
        with suppress(TimeoutError):
            async with streams.one(context), asyncio.timeout(PATIENCE_S):
                try:
                    async for answer in answers:
                        yield answer
                except ServiceError as error:
                    await refuse(context, error)

    handler: Any = grpc.stream_stream_rpc_method_handler(info, None, pb.ServerReflectionResponse.SerializeToString)
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in (SERVICE, ALPHA)]


def _describe_v1() -> None:
    """Register v1's messages: the package has only v1alpha, which differs in the names alone."""
    alpha = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(alpha)
    renamed = Parse(MessageToJson(alpha).replace("v1alpha", "v1"), FileDescriptorProto())
    descriptor_pool.Default().Add(renamed)
