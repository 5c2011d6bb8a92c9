"""`ModelStreamInfer`: many requests over one call, answered in order."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio

from server import tracing
from server.errors import ServiceError
from server.grpc import inference_pb2 as pb
from server.grpc import messages
from server.grpc.keys import ENTER
from server.grpc.messages import SERVICE
from server.grpc.streams import Context, Streams
from server.keys import RefusedError
from server.serving.outcomes import Outcome
from server.serving.service import Service
from server.v2.infer import infer

IN_FLIGHT = 16
"""Most requests of one stream in progress, or half of the worker's slots if fewer; reading pauses at that many."""

_Answers = asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None]

log = logging.getLogger(__name__)


class InferStreams:
    """The streams of one process. A failed request is answered with its error, in order, and the stream goes on."""

    def __init__(self, service: Service, streams: Streams) -> None:
        settings = service.settings
        self._service = service
        self._streams = streams
        self._in_flight = max(1, min(IN_FLIGHT, settings.slots_per_worker // 2))
        self._room = max(1, settings.max_buffered_bytes // settings.max_body_bytes)
        """Streams that may still open: more could receive more at one time than `max_buffered_bytes`."""

    async def model_stream_infer(self, _: object, context: Context) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        """Answer until the client sends no more or the server ends; requests received by then are still answered."""
        if not self._room:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "this worker has no room for another stream")
        self._room -= 1
        answers, free = _Answers(), asyncio.Semaphore(self._in_flight)
        reading = asyncio.create_task(self._read(context, answers, free))
        answer = None
        try:
            while answer := await answers.get():
                yield await answer
                free.release()
            await reading
        finally:
            self._room += 1
            reading.cancel()
            while answer or not answers.empty():
                if answer:
                    answer.cancel()
                answer = None if answers.empty() else answers.get_nowait()

    async def _read(self, context: Context, answers: _Answers, free: asyncio.Semaphore) -> None:
        """Start each request as it arrives, and queue its task in `answers`; None marks the end."""
        ending = asyncio.create_task(self._streams.ending.wait())
        waiting: set[asyncio.Future[Any]] = {ending}
        try:
            while await free.acquire():
                read = asyncio.ensure_future(context.read())
                waiting = {read, ending}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not read.done() or not isinstance(read.result(), bytes):
                    return
                answers.put_nowait(asyncio.create_task(self._answer(read.result(), context)))
                del read  # it holds the message
                waiting = {ending}
        finally:
            for each in waiting:
                each.cancel()
            answers.put_nowait(None)

    async def _answer(self, content: bytes, context: Context) -> pb.ModelStreamInferResponse:
        with tracing.call(f"{SERVICE}/ModelStreamInfer", context.invocation_metadata()):
            request_id = ""
            try:
                with ExitStack() as held:
                    held.enter_context(ENTER.get()())
                    outcome = held.enter_context(Outcome(self._service.metrics))
                    held.enter_context(self._service.buffers.held(len(content)))
                    request, request_id = messages.read(content, context.time_remaining())
                    del content  # its tensors are in the request
                    answer = messages.written(await infer(self._service, request, outcome), request_id)
                    answer.parameters["triton_final_response"].bool_param = True
                    return pb.ModelStreamInferResponse(infer_response=answer)
            except ServiceError as error:
                if isinstance(error, RefusedError):
                    self._service.metrics.refused.labels(error.code).inc()
                tracing.note(error.code)
                return _failed(request_id, f"{error.code}: {error.detail}")
            except Exception:
                log.exception("a request of a gRPC stream failed")
                return _failed(request_id, "internal_error: an internal error of the server; see its log")


def _failed(request_id: str, message: str) -> pb.ModelStreamInferResponse:
    return pb.ModelStreamInferResponse(error_message=message, infer_response=pb.ModelInferResponse(id=request_id))
