"""The Open Inference Protocol over gRPC: with NVIDIA's own client, and with messages that others may send."""

import asyncio
import itertools
import queue
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.model_config_pb2 import ModelInput
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from tests import tiny
from tests.server.running import PATIENCE_S, ROOT, GatedServer, RunningServer, red_image, until

MAX_BODY_BYTES = 2**20
QUEUE_SIZE = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves `tiny` in versions 1 and 2, from two workers that share the port."""
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    tiny.write(repository, version=2)
    with RunningServer(
        repository,
        grpc_port=0,
        http_workers=2,
        queue_size=2 * QUEUE_SIZE,
        max_body_bytes=MAX_BODY_BYTES,
        max_buffered_bytes=2 * MAX_BODY_BYTES,
        body_timeout_ms=1000,
    ) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_address) as found:
        yield found


@pytest.fixture
def stub(server: RunningServer) -> Iterator[GRPCInferenceServiceStub]:
    """The published stub without the client around it, to send what no client would."""
    with grpc.insecure_channel(server.grpc_address, [("grpc.max_send_message_length", -1)]) as channel:
        yield GRPCInferenceServiceStub(channel)


def encoded(*images: bytes) -> triton.InferInput:
    tensor = triton.InferInput("encoded", [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=object))
    return tensor


def pixels(*reds: int) -> triton.InferInput:
    images = np.zeros((len(reds), 32, 32, 3), np.uint8)
    images[..., 0] = np.array(reds)[:, None, None]
    tensor = triton.InferInput("images", images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


def best(result: Any) -> list[int]:
    found: list[int] = result.as_numpy("indices")[:, 0].tolist()
    return found


def code_of(error: grpc.RpcError) -> str:
    """The stable code, which is in the trailing metadata."""
    metadata: Any = error.trailing_metadata()
    return str(dict(metadata)["code"])


def test_the_server_and_its_models_say_what_they_are(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "resnet-serving"
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("none")
    found = client.get_model_metadata("tiny", as_json=True)
    assert (found["versions"], found["platform"]) == (["1", "2"], "onnxruntime_onnx")
    assert found["inputs"][0] == {"name": "images", "datatype": "UINT8", "shape": ["-1", "32", "32", "3"]}
    config = client.get_model_config("tiny").config
    assert (config.max_batch_size, config.input[0].name, list(config.input[0].dims)) == (16, "images", [32, 32, 3])
    assert [each.format for each in config.input] == [ModelInput.FORMAT_NHWC, ModelInput.FORMAT_NONE]
    assert {each.version for each in client.get_model_repository_index().models} == {"1", "2"}


def test_each_image_of_a_batch_has_its_answer_in_its_place(client: triton.InferenceServerClient) -> None:
    reds = [3, 250, 0, 77, 3]
    result = client.infer("tiny", [pixels(*reds)], request_id="mine")
    assert best(result) == reds
    assert result.as_numpy("labels")[:, 0].tolist() == [f"red {red}".encode() for red in reds]
    response = result.get_response()
    assert (response.id, response.model_version) == ("mine", "2")
    assert response.parameters["random_weights"].bool_param is False
    assert best(client.infer("tiny", [encoded(red_image(5), red_image(6))], model_version="1")) == [5, 6]


def test_an_answer_is_that_of_classify(model_repository: Path) -> None:
    photos = [(ROOT / "export/photos" / name).read_bytes() for name in ("cat.jpg", "espresso.jpg", "rocket.jpg")]
    with RunningServer(model_repository, grpc_port=0) as server:
        expected = [server.classify(photo).json()["predictions"] for photo in photos]
        with triton.InferenceServerClient(server.grpc_address) as client:
            result = client.infer("efficientnet_lite0", [encoded(*photos)])
    classes: NDArray[np.int32] = result.as_numpy("indices")
    assert classes.tolist() == [[each["class_id"] for each in predictions] for predictions in expected]
    probabilities = [[each["probability"] for each in predictions] for predictions in expected]
    # In a batch of another size, the runtime adds in another order.
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities, atol=1e-5)


def test_outputs_come_as_they_are_requested(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("labels"), triton.InferRequestedOutput("probabilities", class_count=1)]
    result = client.infer("tiny", [pixels(9)], outputs=outputs, parameters={"top_k": 3})
    assert result.as_numpy("labels").shape == (1, 3)
    assert result.as_numpy("probabilities")[0, 0].decode().split(":")[1:] == ["9", "red 9"]
    assert result.as_numpy("indices") is None


def test_typed_contents_are_understood(stub: GRPCInferenceServiceStub) -> None:
    """As in KServe's specification."""
    image = pb.ModelInferRequest.InferInputTensor(name="encoded", datatype="BYTES", shape=[1])
    image.contents.bytes_contents.append(red_image(5))
    answer = stub.ModelInfer(pb.ModelInferRequest(model_name="tiny", inputs=[image]))
    assert np.frombuffer(answer.raw_output_contents[1], "<i4")[0] == 5
    plain = pb.ModelInferRequest.InferInputTensor(name="images", datatype="UINT8", shape=[1, 32, 32, 3])
    plain.contents.uint_contents.extend([6, 0, 0] * 32 * 32)
    answer = stub.ModelInfer(pb.ModelInferRequest(model_name="tiny", inputs=[plain]))
    assert np.frombuffer(answer.raw_output_contents[1], "<i4")[0] == 6


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_is_read(client: triton.InferenceServerClient, algorithm: str) -> None:
    assert best(client.infer("tiny", [pixels(9)], compression_algorithm=algorithm)) == [9]


def test_the_asynchronous_clients_are_answered(server: RunningServer, client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.async_infer("tiny", [pixels(4)], lambda result, error: answers.put((result, error)))
    result, error = answers.get(timeout=PATIENCE_S)
    assert error is None
    assert best(result) == [4]

    async def aio() -> list[list[int]]:
        async with tritonclient.grpc.aio.InferenceServerClient(server.grpc_address) as found:
            assert await found.is_model_ready("tiny")
            return [best(each) for each in await asyncio.gather(*(found.infer("tiny", [pixels(n)]) for n in range(8)))]

    assert asyncio.run(aio()) == [[red] for red in range(8)]


def test_statistics_are_those_of_all_processes(client: triton.InferenceServerClient) -> None:
    before = client.get_inference_statistics("tiny").model_stats[-1]  # the newest version, which answers
    client.infer("tiny", [pixels(1, 2, 3)])
    after = client.get_inference_statistics("tiny").model_stats[-1]
    assert after.inference_count == before.inference_count + 3
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns


def streamed(client: triton.InferenceServerClient, count: int, *asked: Any, **changes: Any) -> list[Any]:
    """The answers or errors of a stream over which each of `asked` is sent separately."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    try:
        for number, tensor in enumerate(asked):
            client.async_stream_infer("tiny", [tensor], request_id=str(number), **changes)
        return [answers.get(timeout=PATIENCE_S) for _ in range(count)]
    finally:
        client.stop_stream()


def test_a_stream_is_answered_in_its_order(client: triton.InferenceServerClient) -> None:
    reds = [red % 256 for red in range(0, 1200, 30)]  # more than are under way at one time
    answers = streamed(client, len(reds), *map(pixels, reds))
    assert [best(each) for each in answers] == [[red] for red in reds]
    assert [each.get_response().id for each in answers] == [str(number) for number in range(len(reds))]
    assert all(each.get_response().parameters["triton_final_response"].bool_param for each in answers)


def test_an_error_is_answered_in_its_place_and_the_stream_goes_on(client: triton.InferenceServerClient) -> None:
    first, second, third = streamed(client, 3, encoded(red_image(1)), encoded(b"no image"), encoded(red_image(3)))
    assert (best(first), best(third)) == ([1], [3])
    assert isinstance(second, InferenceServerException)
    assert str(second.message()).startswith("not_an_image: ")
    (refused,) = streamed(client, 1, pixels(1), parameters={"else": 1})
    assert str(refused.message()).startswith("invalid_parameter: ")
    (answered,) = streamed(client, 1, pixels(1), enable_empty_final_response=True)
    assert best(answered) == [1]


def test_a_stream_of_what_cannot_be_read_or_is_too_large_ends_for_itself(
    server: RunningServer, stub: GRPCInferenceServiceStub
) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        call: Any = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        answers = [pb.ModelStreamInferResponse.FromString(each) for each in call(iter([b"\xff", b""]))]
        assert [each.error_message.split(":")[0] for each in answers] == ["invalid_request"] * 2
        assert list(call(iter([]))) == []
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.ModelStreamInfer(iter([_request(raw_input_contents=[bytes(2 * MAX_BODY_BYTES)])])))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stub.ModelInfer(_request()).model_name == "tiny"


def test_streams_that_could_need_too_much_memory_are_refused(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    never: queue.Queue[bytes] = queue.Queue()
    with (
        GatedServer(
            tmp_path, grpc_port=0, max_batch=1, max_body_bytes=MAX_BODY_BYTES, max_buffered_bytes=2 * MAX_BODY_BYTES
        ) as server,
        grpc.insecure_channel(server.grpc_address) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        calls: list[Any] = []
        try:
            for _ in range(2):
                calls.append(stub.ModelStreamInfer(itertools.chain([_request()], iter(never.get, b"end"))))
                assert next(calls[-1]).infer_response.model_name == "tiny"
            with pytest.raises(grpc.RpcError) as raised:
                next(stub.ModelStreamInfer(iter([_request()])))
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        finally:
            for call in calls:
                call.cancel()
                never.put(b"end")
        until(lambda: next(stub.ModelStreamInfer(iter([_request()]))).error_message == "")


def test_a_stream_has_no_more_under_way_than_it_may_and_is_answered_when_the_server_ends(tmp_path: Path) -> None:
    """A stream may use half of the worker's 8 places; at the end, requests not read yet are not answered."""
    tiny.write(tmp_path)
    reds = range(1, 10)
    answers: queue.Queue[Any] = queue.Queue()
    with (
        GatedServer(tmp_path, grpc_port=0, max_batch=1, queue_size=8) as server,
        triton.InferenceServerClient(server.grpc_address) as client,
        server.hold(*reds) as let_go,
    ):
        client.start_stream(lambda result, error: answers.put(error or result))
        for red in reds:
            client.async_stream_infer("tiny", [pixels(red)])
        until(lambda: server.pending() == 4)
        server.process.terminate()
        server.wait_for_line("draining")
        assert server.pending() == 4
        let_go()
        assert [best(answers.get(timeout=PATIENCE_S)) for _ in range(4)] == [[1], [2], [3], [4]]
        assert server.process.wait(PATIENCE_S) == 0
        client.stop_stream()


def test_a_client_that_leaves_its_stream_frees_its_places(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with (
        GatedServer(tmp_path, grpc_port=0, max_batch=1, queue_size=8) as server,
        triton.InferenceServerClient(server.grpc_address) as client,
        server.hold(1, 2) as let_go,
    ):
        client.start_stream(lambda result, error: None)  # noqa: ARG005
        for red in (1, 2):
            client.async_stream_infer("tiny", [pixels(red)])
        until(lambda: server.batches() == 1 and server.pending() == 2)
        client.stop_stream(cancel_requests=True)
        until(lambda: server.pending() == 1)
        let_go()
        until(lambda: server.pending() == 0)
        assert server.metric("serving_requests_total", code="client_closed") == 2


def test_a_view_takes_typed_floats(stub: GRPCInferenceServiceStub) -> None:
    plain = pb.ModelInferRequest.InferInputTensor(name="images", datatype="FP32", shape=[1, 32, 32, 3])
    plain.contents.fp32_contents.extend([6 / 127.5 - 1, -1, -1] * 32 * 32)
    answer = stub.ModelInfer(pb.ModelInferRequest(model_name="tiny:inception", inputs=[plain]))
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").argmax() == 6
    assert answer.model_name == "tiny:inception"


RAW = struct.pack("<I", len(red_image(1))) + red_image(1)


def _request(**changes: Any) -> pb.ModelInferRequest:
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [red_image(1)]}}
    return pb.ModelInferRequest(**{"model_name": "tiny", "inputs": [tensor], **changes})


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (_request(model_name="none"), grpc.StatusCode.NOT_FOUND, "unknown_model"),
        (_request(model_name=""), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        (_request(model_version="x"), grpc.StatusCode.NOT_FOUND, "unknown_model"),
        (_request(inputs=[]), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        (_request(raw_input_contents=[b"", b""]), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        (_request(raw_input_contents=[b"abc"]), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        (_request(raw_input_contents=[RAW]), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        (_request(parameters={"else": {"bool_param": True}}), grpc.StatusCode.INVALID_ARGUMENT, "invalid_parameter"),
        (_request(parameters={"priority": {}}), grpc.StatusCode.INVALID_ARGUMENT, "invalid_parameter"),
        (_request(parameters={"sequence_id": {}}), grpc.StatusCode.INVALID_ARGUMENT, "invalid_parameter"),
        (
            _request(outputs=[{"name": "labels", "parameters": {"shared_memory_region": {"string_param": "mine"}}}]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_request",
        ),
        (
            _request(
                inputs=[
                    {
                        "name": "encoded",
                        "datatype": "BYTES",
                        "shape": [1],
                        "parameters": {"shared_memory_region": {"string_param": "mine"}},
                    }
                ]
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_request",
        ),
        (_request(outputs=[{"name": "else"}]), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        (_request(parameters={"top_k": {"int64_param": 0}}), grpc.StatusCode.INVALID_ARGUMENT, "invalid_parameter"),
        (_request(parameters={"timeout": {"int64_param": 1}}), grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded"),
        (
            _request(
                inputs=[
                    {"name": "encoded", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"none"]}}
                ]
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "not_an_image",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_mistake_has_its_status_and_code(
    stub: GRPCInferenceServiceStub, request_: pb.ModelInferRequest, status: grpc.StatusCode, code: str
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request_)
    assert raised.value.code() is status
    assert raised.value.details()
    assert code_of(raised.value) == code


def test_other_calls_have_them_too(client: triton.InferenceServerClient) -> None:
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: client.get_model_metadata("none"), "NOT_FOUND"),
        (lambda: client.load_model("none"), "NOT_FOUND"),
        (lambda: client.unload_model("none"), "NOT_FOUND"),
        (lambda: client.get_trace_settings(), "UNIMPLEMENTED"),
        (lambda: client.register_system_shared_memory("mine", "/mine", 64), "UNIMPLEMENTED"),
        (lambda: client.register_cuda_shared_memory("mine", b"aGFuZGxl", 0, 64), "UNIMPLEMENTED"),
        (lambda: client.load_model("tiny", config="{}"), "INVALID_ARGUMENT"),
        (lambda: client.load_model("tiny", config="{}", files={"file:1/model.onnx": b""}), "INVALID_ARGUMENT"),
        (lambda: client.unload_model("tiny", unload_dependents=True), "INVALID_ARGUMENT"),
    ]
    for call, status in calls:
        with pytest.raises(InferenceServerException) as raised:
            call()
        assert raised.value.status() == f"StatusCode.{status}"
    client.unregister_system_shared_memory()  # as clients do at their start; nothing is registered
    client.unregister_cuda_shared_memory()


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_is_bounded_also_in_what_it_decompresses_to(
    server: RunningServer, stub: GRPCInferenceServiceStub, compression: grpc.Compression
) -> None:
    refused = server.metric("serving_requests_total")
    for _ in range(5):  # more than are received at one time
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(_request(raw_input_contents=[bytes(50 * MAX_BODY_BYTES)]), compression=compression)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    until(lambda: server.metric("serving_requests_total") == refused + 5)
    assert stub.ModelInfer(_request()).model_name == "tiny"


def send(channel: grpc.Channel, messages: Iterator[bytes]) -> grpc.StatusCode:
    """The status with which `ModelInfer` ends for these raw messages."""
    call: Any = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
    code: grpc.StatusCode = call.future(messages).code()
    return code


def test_bytes_that_are_no_message_are_refused(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        for messages in ([], [b"\xff" * 9], [b""], [b"", b""]):
            assert send(channel, iter(messages)) is grpc.StatusCode.INVALID_ARGUMENT


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=60), cut=st.integers(0, 200), at=st.integers(0, 200))
def test_no_bytes_make_an_error_of_the_servers_own(server: RunningServer, content: bytes, cut: int, at: int) -> None:
    """Bytes alone, and bytes put into a message, replacing others or not."""
    message = _request().SerializeToString()
    with grpc.insecure_channel(server.grpc_address) as channel:
        for sent in (content, message[:at] + content + message[at + cut % 9 :]):
            assert send(channel, iter([sent])) in (
                grpc.StatusCode.OK,
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
            )


def test_a_message_that_does_not_come_is_not_waited_for(server: RunningServer) -> None:
    never: queue.Queue[bytes] = queue.Queue()
    refused = server.metric("serving_requests_total", code="body_timeout")
    with grpc.insecure_channel(server.grpc_address) as channel:
        assert send(channel, iter(never.get, b"end")) is grpc.StatusCode.DEADLINE_EXCEEDED
        never.put(b"end")
    assert server.metric("serving_requests_total", code="body_timeout") == refused + 1


def test_a_client_that_leaves_frees_its_places(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    reds = range(1, 9)
    with (
        GatedServer(tmp_path, grpc_port=0, max_batch=1, queue_size=8) as server,
        triton.InferenceServerClient(server.grpc_address) as client,
        server.hold(*reds) as let_go,
    ):
        asked = client.async_infer("tiny", [pixels(*reds)], lambda result, error: None)  # noqa: ARG005
        until(lambda: server.batches() == 1 and server.pending() == 8)
        with pytest.raises(InferenceServerException) as raised:
            client.infer("tiny", [pixels(9)])
        assert raised.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        asked.cancel()
        until(lambda: server.pending() == 1)
        let_go()
        until(lambda: server.pending() == 0)
        assert server.batches() == 1
        assert server.metric("serving_requests_total", code="client_closed") == 1


def test_sigterm_answers_what_was_accepted(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    reds = list(range(1, 7))
    with GatedServer(tmp_path, grpc_port=0, max_batch=2) as server, ThreadPoolExecutor(1) as aside:
        host, port = server.grpc_address.split(":")
        with triton.InferenceServerClient(server.grpc_address) as client, server.hold(*reds) as let_go:
            answer = aside.submit(client.infer, "tiny", [pixels(*reds)])
            until(lambda: server.batches() >= 1)
            server.process.terminate()
            server.wait_for_line("draining")
            let_go()
            assert server.process.wait(PATIENCE_S) == 0
            assert best(answer.result()) == reds
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))


def test_a_killed_engine_loses_no_accepted_call(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    reds = list(range(1, 7))
    with (
        GatedServer(tmp_path, grpc_port=0, max_batch=2) as server,
        ThreadPoolExecutor(1) as aside,
        triton.InferenceServerClient(server.grpc_address) as client,
        server.hold(*reds) as let_go,
    ):
        answer = aside.submit(client.infer, "tiny", [pixels(*reds)])
        until(lambda: server.batches() >= 1)
        server.kill_child("engine")
        let_go()
        assert best(answer.result()) == reds


def test_a_restarted_worker_takes_calls_again(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, grpc_port=0) as server:
        server.kill_child("http-0")
        with triton.InferenceServerClient(server.grpc_address) as client:
            assert best(client.infer("tiny", [pixels(7)])) == [7]


def test_a_taken_port_is_said_in_one_line(server: RunningServer, tmp_path: Path) -> None:
    tiny.write(tmp_path)
    port = server.grpc_address.rpartition(":")[2]
    command = [sys.executable, "-m", "server", "--port", "0", "--grpc-port", port, "--repository", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("choose another --host or --grpc-port")


def test_every_error_has_its_status() -> None:
    program = "from server.errors import Code; from server.grpc.service import STATUS; print({*Code} - {*STATUS})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_our_part_of_the_protocol_is_as_it_was_published() -> None:
    """Compares names, numbers and types of every field and call with those that the client was built from."""
    program = (
        "import sys; from server.grpc.inference_pb2 import DESCRIPTOR as file\n"
        "sys.stdout.buffer.write(file.serialized_pb)"
    )
    ours = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True).stdout

    def compare(message: Any, prefix: str) -> int:
        theirs = Default().FindMessageTypeByName(f"{prefix}.{message.name}")
        for field in message.field:
            other = theirs.fields_by_name[field.name]
            kind = other.message_type or other.enum_type
            assert (field.number, field.type) == (other.number, other.type)
            assert field.type_name.lstrip(".") == (kind.full_name if kind else "")
            assert (field.label == field.LABEL_REPEATED) == other.is_repeated
        return len(message.field) + sum(compare(inner, f"{prefix}.{message.name}") for inner in message.nested_type)

    file = FileDescriptorProto.FromString(ours)
    assert sum(compare(message, file.package) for message in file.message_type) > 90
    for enum in file.enum_type:
        published = Default().FindEnumTypeByName(f"{file.package}.{enum.name}").values_by_name
        assert all(published[value.name].number == value.number for value in enum.value)
    (service,) = file.service
    for method in service.method:
        other = Default().FindServiceByName(f"{file.package}.{service.name}").methods_by_name[method.name]
        assert (method.input_type, method.output_type) == (
            f".{other.input_type.full_name}",
            f".{other.output_type.full_name}",
        )
