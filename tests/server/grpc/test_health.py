"""`grpc.health.v1` and reflection, used by their published clients."""

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2 as reflection
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests import tiny
from tests.server.running import PATIENCE_S, RunningServer, red_image, until

MAX_CONNECTIONS = 4
MAX_STREAMS = 64
INFERENCE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    with RunningServer(repository, grpc_port=0, max_connections=MAX_CONNECTIONS, drain_delay_ms=100) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as found:
        yield found


def check(channel: grpc.Channel, name: str) -> Any:
    return HealthStub(channel).Check(HealthCheckRequest(service=name), timeout=PATIENCE_S).status


@pytest.mark.parametrize("name", ["", INFERENCE, "tiny"])
def test_the_server_its_service_and_its_models_are_healthy(channel: grpc.Channel, name: str) -> None:
    assert check(channel, name) == SERVING


def test_a_name_that_is_not_there_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        check(channel, "none")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    watched = HealthStub(channel).Watch(HealthCheckRequest(service="none"))
    assert next(watched).status == HealthCheckResponse.SERVICE_UNKNOWN
    watched.cancel()


def test_a_tool_that_knows_nothing_of_the_server_can_call_it(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {INFERENCE, "grpc.health.v1.Health"} < set(database.get_services())
    method = DescriptorPool(database).FindServiceByName(INFERENCE).methods_by_name["ModelInfer"]
    request: Any = GetMessageClass(method.input_type)(model_name="tiny", raw_input_contents=[])
    tensor = request.inputs.add(name="encoded", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(red_image(7))
    call: Any = channel.unary_unary(
        f"/{INFERENCE}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    assert call(request, timeout=PATIENCE_S).model_name == "tiny"


def test_reflection_is_there_under_both_names_and_describes_both(channel: grpc.Channel) -> None:
    for version in ("v1", "v1alpha"):
        ask: Any = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection.ServerReflectionResponse.FromString,
        )
        symbols = [INFERENCE, "grpc.health.v1.Health", f"grpc.reflection.{version}.ServerReflection", "none"]
        asked = [reflection.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
        answers = list(ask(iter(asked), timeout=PATIENCE_S))
        assert [answer.HasField("file_descriptor_response") for answer in answers] == [True, True, True, False]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("grpc.health.v1.Health/Check", b"\xff"),
        ("grpc.health.v1.Health/Watch", b"\xff"),
        ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", b"\xff"),
        (f"{INFERENCE}/ServerLive", b"\xff"),
        (f"{INFERENCE}/ModelMetadata", b"\x0a\x01\xff"),
    ],
)
def test_what_is_no_message_is_the_clients_mistake_and_not_in_the_log(
    server: RunningServer, channel: grpc.Channel, method: str, message: bytes
) -> None:
    start = len(server.lines)
    call: Any = channel.stream_stream(f"/{method}")
    assert call(iter([message]), timeout=PATIENCE_S).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert server.lines[start:] == []


@pytest.mark.parametrize("method", ["grpc.health.v1.Health/Check", f"{INFERENCE}/ModelMetadata"])
def test_a_name_without_end_is_not_all_of_it_in_the_answer(channel: grpc.Channel, method: str) -> None:
    call: Any = channel.unary_unary(f"/{method}")
    with pytest.raises(grpc.RpcError) as raised:
        call(HealthCheckRequest(service="\u20ac" * 10**5).SerializeToString(), timeout=PATIENCE_S)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert "\u20ac" in (raised.value.details() or "")


def test_probes_are_answered_where_all_other_calls_are_under_way(channel: grpc.Channel) -> None:
    never: queue.Queue[bytes] = queue.Queue()
    infer: Any = channel.stream_unary(f"/{INFERENCE}/ModelInfer")
    calls = [infer.future(iter(never.get, b"end")) for _ in range(MAX_CONNECTIONS + 1)]
    try:
        refused = wait_for_first(calls)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert sum(call.done() for call in calls) == 1
        assert check(channel, "") == SERVING
    finally:
        for call in calls:
            call.cancel()
            never.put(b"end")


def wait_for_first(calls: list[Any]) -> Any:
    until(lambda: any(call.done() for call in calls))
    return next(call for call in calls if call.done())


def test_of_streams_there_are_only_so_many(channel: grpc.Channel) -> None:
    streams = [HealthStub(channel).Watch(HealthCheckRequest()) for _ in range(MAX_STREAMS)]
    try:
        assert {next(stream).status for stream in streams} == {SERVING}
        with pytest.raises(grpc.RpcError) as raised:
            next(HealthStub(channel).Watch(HealthCheckRequest()))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert check(channel, "") == SERVING
    finally:
        for stream in streams:
            stream.cancel()
    until(lambda: may_watch(channel))


def may_watch(channel: grpc.Channel) -> bool:
    stream = HealthStub(channel).Watch(HealthCheckRequest())
    try:
        return bool(next(stream))
    except grpc.RpcError:
        return False
    finally:
        stream.cancel()


def test_who_watches_hears_of_an_engine_that_dies_and_does_not_hold_up_the_end(
    server: RunningServer, channel: grpc.Channel
) -> None:
    watched = HealthStub(channel).Watch(HealthCheckRequest())
    model = HealthStub(channel).Watch(HealthCheckRequest(service="tiny"))
    assert next(watched).status == next(model).status == SERVING
    server.kill_child("engine")
    assert [next(watched).status, next(watched).status] == [NOT_SERVING, SERVING]
    server.process.terminate()
    assert next(watched).status == NOT_SERVING
    with pytest.raises(grpc.RpcError) as raised:
        next(watched)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert [found.status for found in _until_broken(model)] == [NOT_SERVING, SERVING, NOT_SERVING]
    assert server.process.wait(PATIENCE_S) == 0


def _until_broken(answers: Any) -> Iterator[Any]:
    try:
        yield from answers
    except grpc.RpcError:
        return
