"""API keys over gRPC: the same keys in the metadata `authorization` or `x-api-key`."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio

from server.grpc.streams import Context, Refuse
from server.keys import Account, Keys, RefusedError, RoleName, bearer
from server.serving.service import Service

OPEN = frozenset({"ServerLive", "ServerReady", "Check", "Watch"})
"""Probes, which machines without a key call."""
ADMIN = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})

ENTER: ContextVar[Callable[[], AbstractContextManager[object]]] = ContextVar("enter", default=nullcontext)
"""Begins one request of a stream and checks its key again, as the stream may outlive the key."""

Handler = Any  # grpc.RpcMethodHandler, which is generic for the type checker only
Call = Callable[[Any, Context], Awaitable[Any]]
Stream = Callable[[Any, Context], AsyncGenerator[Any, None]]


class KeyCheck(grpc.aio.ServerInterceptor):
    """Passes on calls whose key has the role they need, and refuses the others before reading their message."""

    def __init__(self, service: Service, keys: Keys, refuse: Refuse) -> None:
        self._keys = keys
        self._refused = service.metrics.refused
        self._refuse = refuse

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler of a call, or one that refuses it."""
        handler = await continuation(handler_call_details)
        name = handler_call_details.method.rpartition("/")[2]
        if name in OPEN or handler is None:
            return handler
        role: RoleName = "admin" if name in ADMIN else "classify"
        sent = _sent(handler_call_details.invocation_metadata)
        try:
            account = self._keys.account(sent, role)
        except RefusedError as error:
            return grpc.stream_unary_rpc_method_handler(self._refusing(error))
        if handler.unary_unary:
            call = self._counted(account, handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)
        if handler.stream_stream:
            if name == "ModelStreamInfer":
                stream = self._stream_of_counted(sent, role, handler.stream_stream)
            else:
                stream = self._counted_stream(account, handler.stream_stream)
            return grpc.stream_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )
        call = self._counted(account, handler.stream_unary)
        return grpc.stream_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    def _refusing(self, error: RefusedError) -> Call:
        async def refuse(_: Any, context: Context) -> Any:
            self._refused.labels(error.code).inc()
            return await self._refuse(context, error)

        return refuse

    def _counted(self, account: Account, call: Call) -> Call:
        async def counted(request: Any, context: Context) -> Any:
            try:
                under_way = account.enter(time.monotonic())
            except RefusedError as error:
                return await self._refusing(error)(request, context)
            with under_way:
                return await call(request, context)

        return counted

    def _counted_stream(self, account: Account, call: Stream) -> Stream:
        async def counted(requests: Any, context: Context) -> AsyncGenerator[Any, None]:
            try:
                under_way = account.enter(time.monotonic())
            except RefusedError as error:
                await self._refusing(error)(requests, context)
                return
            with under_way:
                async with aclosing(call(requests, context)) as answers:
                    async for answer in answers:
                        yield answer

        return counted

    def _stream_of_counted(self, sent: bytes | None, role: RoleName, call: Stream) -> Stream:
        def enter() -> AbstractContextManager[object]:
            return self._keys.account(sent, role).enter(time.monotonic())

        async def known(requests: Any, context: Context) -> AsyncGenerator[Any, None]:
            ENTER.set(enter)
            async with aclosing(call(requests, context)) as answers:
                async for answer in answers:
                    yield answer

        return known


def _sent(metadata: Any) -> bytes | None:
    fields = {name: value.encode() if isinstance(value, str) else value for name, value in metadata or ()}
    return bearer(fields.get("authorization", b"")) or fields.get("x-api-key")
