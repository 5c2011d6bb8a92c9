"""OpenTelemetry traces: a span for each request, and one for each stage of its answer.

FastAPI makes the request's span, and continues the trace of `traceparent`. The SDK is loaded only if tracing is
configured; without it, the only cost is FastAPI's check for a tracer.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from opentelemetry import propagate, trace

from models import hints
from server import VERSION, logs
from server.engine.classes import Classes
from server.repository import ModelKey
from server.settings import Settings

NAME = "resnet-serving"
FLUSH_S = 3.0
"""How long an ending process waits for the collector to take its last spans."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

log = logging.getLogger(__name__)


def is_installed() -> bool:
    """Whether spans can be sent."""
    return find_spec("opentelemetry.sdk") is not None


def is_on() -> bool:
    """Whether this process makes spans."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def start(settings: Settings) -> None:
    """Have this process send spans to the collector named by the setting or OpenTelemetry's own variables, if any."""
    if not _is_wanted(settings):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    endpoint = settings.otlp_endpoint
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
    ours = Resource.create({"service.name": NAME, "service.version": VERSION})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))  # its queue is bounded: spans that do not fit are dropped
    trace.set_tracer_provider(provider)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_with_trace_id)


def _is_wanted(settings: Settings) -> bool:
    environment = {name: value for name, value in os.environ.items() if value}
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if settings.otlp_endpoint:
        return True
    asked = [name for name in ENDPOINTS if name in environment]
    if not asked or environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return False
    # The environment may be meant for other programs as well, so a mistake in it only disables traces.
    protocol = next((environment[name] for name in PROTOCOLS if name in environment), "http/protobuf")
    if protocol != "http/protobuf":
        log.warning("no traces: %s asks for %s, and only http/protobuf is supported", asked[0], protocol)
        return False
    if not is_installed():
        how = hints.install("tracing")
        log.warning("no traces: %s is set, but tracing is not installed: %s", asked[0], how)
        return False
    return True


async def stop() -> None:
    """Send the remaining spans, within `FLUSH_S` at most."""
    if not is_on():
        return
    provider = trace.get_tracer_provider()
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def shut_down() -> None:
        provider.shutdown()  # type: ignore[attr-defined]  # of the SDK
        with suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(done.set)

    # A daemon thread: it may take longer than this process may wait.
    threading.Thread(target=shut_down, name="traces", daemon=True).start()
    try:
        async with asyncio.timeout(FLUSH_S):
            await done.wait()
    except TimeoutError:
        log.warning("the last traces are lost: the collector did not take them within %g s", FLUSH_S)


def trace_id() -> str | None:
    """Trace id of the current request; None: it has none."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def sampled_trace_id() -> str | None:
    """Trace id of the current request, if this process makes spans and the trace is sampled."""
    sampled = trace.get_current_span().get_span_context().trace_flags.sampled  # first: `is_on` reads the environment
    return trace_id() if sampled and is_on() else None


def _with_trace_id(record: logging.LogRecord) -> bool:
    found = trace_id()
    if found:
        logs.add_fields(record, trace_id=found)
    return True


def note(code: str) -> None:
    """Record on the request's span the code of the failure that it ended with."""
    trace.get_current_span().set_attribute("serving.code", code)


@contextmanager
def call(name: str, metadata: Iterable[tuple[str, Any]] | None) -> Generator[None]:
    """Make a span for a gRPC call, in the trace that its metadata names."""
    if not is_on():
        yield
        return
    service, _, method = name.partition("/")
    with trace.get_tracer(NAME).start_as_current_span(
        name,
        propagate.extract({key: value for key, value in metadata or () if isinstance(value, str)}),
        trace.SpanKind.SERVER,
        {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        record_exception=False,
        set_status_on_exception=False,
    ):
        yield


def note_stages(answers: Sequence[Classes], key: ModelKey) -> None:
    """Make child spans of the request's span for the stages of its crops, from the times in their answers."""
    if trace.get_current_span().is_recording():
        add_stages(trace.get_tracer(NAME), answers, key, time.time_ns())


def add_stages(tracer: trace.Tracer, answers: Sequence[Classes], key: ModelKey, answered_ns: int) -> None:
    """Add one decode span, and a queue and an inference span for each crop, ending at `answered_ns`, in Unix time.

    Only their durations are known. The last inference is assumed to end with the answer, although it ended some tenths
    of a millisecond earlier, before the way between the processes. Any time before the decode span is the wait for a
    decoder.
    """
    attributes: dict[str, str | int] = {"serving.model": key.name, "serving.version": key.version}

    def add(stage: str, start_ns: int, seconds: float, **more: int) -> int:
        end_ns = start_ns + round(seconds * 1e9)
        tracer.start_span(stage, attributes={**attributes, **more}, start_time=start_ns).end(end_ns)
        return end_ns

    decoded_ns = answered_ns - round(max(answer.queue_s + answer.inference_s for answer in answers) * 1e9)
    if decode_s := answers[0].decode_s:  # 0: the client sent pixels, or they were decoded before
        add("decode", decoded_ns - round(decode_s * 1e9), decode_s)
    for answer in answers:
        inferred_ns = add("queue", decoded_ns, answer.queue_s)
        add("inference", inferred_ns, answer.inference_s, **{"serving.batch_size": answer.batch_size})
