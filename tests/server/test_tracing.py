"""Traces, in the SDK's memory and as a collector receives them from a running server."""

import os
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from server import tracing
from server.engine.classes import Classes
from server.repository import ModelKey
from server.settings import Settings
from tests import tiny
from tests.server.collector import Collector
from tests.server.running import RunningServer, red_image

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    tiny.write(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def server(repository: Path, collector: Collector) -> Iterator[RunningServer]:
    flags = {"otlp_endpoint": collector.endpoint, "access_log": True, "grpc_port": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        with RunningServer(repository, **flags) as running:
            yield running


def attributes(span: Span) -> dict[str, str | int]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_the_stages_end_at_the_answer_and_follow_each_other_without_a_gap() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    nothing = np.empty(0, np.float32)
    slow, quick = (
        Classes(nothing, nothing.astype(np.int32), nothing, queue_s, 0.5, 2, 0.0625, 0.25) for queue_s in (1.0, 0.125)
    )
    tracing.add_stages(provider.get_tracer("tests"), [slow, quick], ModelKey("tiny", 3), 10**18)
    spans = {
        (span.name, span.start_time - 10**18, span.end_time - 10**18)
        for span in exporter.get_finished_spans()
        if span.start_time and span.end_time
    }
    ms = 10**6
    assert spans == {
        ("decode", -1750 * ms, -1500 * ms),
        ("queue", -1500 * ms, -500 * ms),
        ("inference", -500 * ms, 0),
        ("queue", -1500 * ms, -1375 * ms),
        ("inference", -1375 * ms, -875 * ms),
    }


def test_a_request_continues_its_clients_trace_and_has_its_stages_in_it(
    server: RunningServer, collector: Collector
) -> None:
    response = server.client.post("/classify", content=red_image(7), headers={**SAMPLED, "X-Request-ID": "mine"})
    request, decode, queue, inference = collector.trace(TRACE, 4)
    assert (request.name, request.kind, request.parent_span_id.hex()) == (
        "POST /classify",
        Span.SPAN_KIND_SERVER,
        PARENT,
    )
    assert request.trace_state == "vendor=1"
    assert attributes(request)["http.response.status_code"] == 200
    assert [span.name for span in (decode, queue, inference)] == ["decode", "queue", "inference"]
    assert {span.parent_span_id for span in (decode, queue, inference)} == {request.span_id}
    assert attributes(inference) == {"serving.model": "tiny", "serving.version": 1, "serving.batch_size": 1}
    assert request.start_time_unix_nano <= decode.start_time_unix_nano
    assert all(a.end_time_unix_nano == b.start_time_unix_nano for a, b in pairwise((decode, queue, inference)))
    assert inference.end_time_unix_nano <= request.end_time_unix_nano
    timings = response.json()["timings_ms"]
    lasted_ns = inference.end_time_unix_nano - inference.start_time_unix_nano
    assert lasted_ns == pytest.approx(timings["inference"] * 1e6, abs=1e4)
    assert response.headers["traceresponse"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    assert collector.resources[0]["service.name"] == "resnet-serving"
    assert collector.resources[0]["deployment.environment.name"] == "test"
    server.wait_for_line(rf"POST /classify .*status=200 .*request_id=mine trace_id={TRACE}")


def test_the_histograms_of_time_name_the_newest_trace_of_each_bucket(server: RunningServer) -> None:
    unsampled = {"traceparent": SAMPLED["traceparent"].replace(TRACE, TRACE[::-1])[:-1] + "0"}
    for headers in (SAMPLED, unsampled):
        assert server.client.post("/classify", content=red_image(8), headers=headers).status_code == 200
    answer = server.client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    buckets = [sample for family in openmetrics_families(answer.text) for sample in family.samples if sample.exemplar]  # type: ignore[no-untyped-call]
    assert {sample.name for sample in buckets} == {
        f"serving_{name}_seconds_bucket" for name in ("request", "decode_wait", "decode", "queue", "inference")
    }
    found = [sample.exemplar for sample in buckets if sample.exemplar]
    assert TRACE in {exemplar.labels["trace_id"] for exemplar in found}
    assert TRACE[::-1] not in {exemplar.labels["trace_id"] for exemplar in found}
    bounds = [float(sample.labels["le"]) for sample in buckets]
    assert all(0 <= exemplar.value <= bound for exemplar, bound in zip(found, bounds, strict=True))


def test_a_request_of_nobodys_trace_begins_one_and_each_of_ten_crops_is_in_it(
    server: RunningServer, collector: Collector
) -> None:
    response = server.classify(red_image(7), crops=10)
    trace_id = response.headers["traceresponse"].split("-")[1]
    names = [span.name for span in collector.trace(trace_id, 22)]
    assert sorted(names) == ["POST /classify", "decode", *["inference"] * 10, *["queue"] * 10]


def test_a_failure_has_its_code_in_the_span(server: RunningServer, collector: Collector) -> None:
    response = server.classify(b"not an image")
    (request,) = collector.trace(response.headers["traceresponse"].split("-")[1], 1)
    assert attributes(request)["serving.code"] == response.json()["code"] == "not_an_image"
    assert attributes(request)["http.response.status_code"] == 415


def test_a_client_that_does_not_want_to_be_traced_is_not(server: RunningServer, collector: Collector) -> None:
    other = TRACE.replace("0", "1")
    assert (
        server.client.post("/classify", content=red_image(7), headers={"traceparent": f"00-{other}-{PARENT}-00"})
        .headers["traceresponse"]
        .endswith("-00")
    )
    after = server.classify(red_image(7)).headers["traceresponse"].split("-")[1]
    collector.trace(after, 4)
    assert not [span for span in collector.spans if span.trace_id.hex() == other]


def test_probes_are_not_traced(server: RunningServer) -> None:
    assert "traceresponse" not in server.client.get("/readyz").headers


def test_the_open_inference_protocol_is_traced_over_rest_and_grpc(server: RunningServer, collector: Collector) -> None:
    pixels = np.full((1, 32, 32, 3), 9, np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": pixels.ravel().tolist()}
    metadata = server.client.get("/v2/models/tiny").json()
    tensor["name"] = metadata["inputs"][0]["name"]
    response = server.client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
    assert response.status_code == 200
    spans = collector.trace(response.headers["traceresponse"].split("-")[1], 4)
    assert [span.name for span in spans] == ["POST /v2/models/{name}/infer", "decode", "queue", "inference"]

    trace_id = TRACE.replace("0", "2")
    asked = tritonclient.grpc.InferInput(tensor["name"], [1, 32, 32, 3], "UINT8")
    asked.set_data_from_numpy(pixels)
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        client.infer("tiny", [asked], headers={"traceparent": f"00-{trace_id}-{PARENT}-01"})
    call, *stages = collector.trace(trace_id, 4)
    assert (call.name, call.kind) == ("inference.GRPCInferenceService/ModelInfer", Span.SPAN_KIND_SERVER)
    assert [span.name for span in stages] == ["decode", "queue", "inference"]


def test_what_was_answered_before_the_end_is_sent_before_the_end(repository: Path) -> None:
    with Collector() as collector, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)  # instead of a setting
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        with RunningServer(repository) as server:
            trace_id = server.classify(red_image(7)).headers["traceresponse"].split("-")[1]
            assert not collector.spans
            assert server.terminate() == 0
        assert len(collector.trace(trace_id, 4)) == 4


def test_a_collector_that_never_answers_loses_no_request_and_holds_up_no_end(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
        patch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
        patch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with RunningServer(repository, otlp_endpoint=endpoint) as server:
            answers = server.classify_all([red_image(7)] * 40, 4)
            assert {answer.status_code for answer in answers} == {200}
            assert server.terminate() == 0
            server.wait_for_line("the last traces are lost")


def test_nothing_of_it_is_there_unless_asked_for(repository: Path) -> None:
    with RunningServer(repository) as server:
        assert "traceresponse" not in server.classify(red_image(7)).headers
        maps = Path(f"/proc/{server.pid('http-0')}/maps").read_text()
        assert "protobuf" not in maps
    tracing.start(Settings())
    assert not tracing.is_on()


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_the_standard_environment_can_turn_it_off(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracing.start(Settings())
    assert not tracing.is_on()
