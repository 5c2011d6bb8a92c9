"""API keys over HTTP and gRPC, against real servers."""

import hashlib
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from resnet_serving_client import Client, RejectedError
from resnet_serving_client.__main__ import API_KEY_VARIABLE
from tests import tiny
from tests.server.running import PATIENCE_S, ROOT, GatedServer, RunningServer, red_image, until

PAGE = "https://page.example"


def line(name: str, options: str = "") -> str:
    """A line of the keys' file, for a key that equals its name."""
    return f"{name} {hashlib.sha256(name.encode()).hexdigest()} {options}\n"


KEYS = line("shop") + line("ops", "role=admin") + line("single", "concurrent=1") + line("rare", "rate=0.01")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(KEYS)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[GatedServer]:
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    tiny.write(repository, "other")
    with GatedServer(
        repository,
        default_model="tiny",
        grpc_port=0,
        api_keys=keys,
        metrics_role="none",
        header_timeout_ms=1000,
        access_log=True,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def stub(server: RunningServer) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield GRPCInferenceServiceStub(channel)


def of(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def refusal(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == response.json()["request_id"]
    return response.status_code, response.json()["code"]


def classify(server: RunningServer, headers: dict[str, str], **parameters: str) -> httpx.Response:
    return server.client.post("/classify", content=red_image(9), headers=headers, params=parameters)


@pytest.mark.parametrize("headers", [of("shop"), {"X-API-Key": "shop"}, of("ops")])
def test_a_key_that_is_known_classifies(server: RunningServer, headers: dict[str, str]) -> None:
    assert classify(server, headers).json()["predictions"][0]["class_id"] == 9


@pytest.mark.parametrize("headers", [{}, of("nobody"), {"Authorization": "Basic shop"}, {"X-API-Key": ""}])
def test_no_other_does(server: RunningServer, headers: dict[str, str]) -> None:
    before = server.metric("serving_refused_requests_total", code="unauthorized")
    response = classify(server, headers)
    assert refusal(response) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert server.metric("serving_refused_requests_total", code="unauthorized") == before + 1


@pytest.mark.parametrize("path", ["/models", "/openapi.json", "/nowhere", "//livez", "//", "/static", "/docs/"])
def test_whatever_is_neither_probe_nor_page_needs_a_key(server: RunningServer, path: str) -> None:
    assert refusal(server.client.get(server.url + path)) == (401, "unauthorized")


@pytest.mark.parametrize("path", ["/", "/docs", "/static/page.js"])
def test_the_pages_load_without_a_key_which_they_ask_for(server: RunningServer, path: str) -> None:
    assert server.client.get(path).status_code == server.client.head(path).status_code == 200
    assert server.client.post(path, content=red_image(9)).status_code == 401  # POST / is Hugging Face's route


def test_the_document_says_what_needs_a_key(server: RunningServer) -> None:
    paths = server.client.get("/openapi.json", headers=of("shop")).json()["paths"]
    keys: list[dict[str, list[str]]] = [{"bearer": []}, {"api_key": []}]
    assert paths["/classify"]["post"]["security"] == keys
    assert paths["/v2/repository/models/{name}/load"]["post"]["security"] == keys
    assert paths["/v2/health/ready"]["get"]["security"] == paths["/metrics"]["get"]["security"] == []


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"])
def test_probes_are_open_and_metrics_where_it_is_said(server: RunningServer, path: str) -> None:
    assert server.client.get(path).status_code == 200


def test_a_body_is_not_waited_for(server: RunningServer) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(2**16)

    try:
        response = server.client.post("/classify", content=endless())
    except httpx.TransportError:
        return  # the connection ended under the upload
    assert response.status_code == 401


@pytest.mark.parametrize("action", ["load", "unload"])
@pytest.mark.parametrize("model", ["other", "%6fther", "other%2F..%2Fother"])
def test_only_an_admin_changes_what_is_served(server: RunningServer, model: str, action: str) -> None:
    path = f"/v2/repository/models/{model}/{action}"
    response = server.client.post(path, headers=of("shop"))
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert set(server.client.post(path).json()) == {"error", "code"}
    assert server.client.post("/v2/repository/models/none/load", headers=of("ops")).status_code == 404


def test_a_rate_is_kept(server: RunningServer) -> None:
    assert classify(server, of("rare")).status_code == 200
    response = classify(server, of("rare"))
    assert refusal(response) == (429, "rate_limited")
    assert 90 < int(response.headers["retry-after"]) <= 100
    assert classify(server, of("shop")).status_code == 200


def test_a_rate_is_one_for_all_workers(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    (tmp_path / "keys.txt").write_text(line("rare", "rate=0.01 burst=5"))
    with RunningServer(tmp_path, api_keys=tmp_path / "keys.txt", http_workers=2) as server:
        statuses = [
            httpx.post(f"{server.url}/classify", content=red_image(9), headers=of("rare")).status_code  # by either
            for _ in range(20)
        ]
    assert statuses == [200] * 5 + [429] * 15


def test_requests_at_one_time_are_bounded_and_end_with_their_answer(server: GatedServer) -> None:
    with ThreadPoolExecutor() as pool, server.hold(9) as let_go:
        running = pool.submit(classify, server, of("single"))
        until(lambda: server.pending() == 1)
        assert refusal(classify(server, of("single"))) == (429, "rate_limited")
        let_go()
        assert running.result().status_code == 200
    assert classify(server, of("single")).status_code == 200


def test_a_client_that_leaves_leaves_its_place(server: GatedServer) -> None:
    with server.hold(1), server.post_and_keep_open(red_image(1), Authorization="Bearer single"):
        until(lambda: server.pending() == 1)
    until(lambda: classify(server, of("single")).status_code == 200)


def test_a_worker_that_dies_gives_its_places_back(server: GatedServer) -> None:
    with ThreadPoolExecutor() as pool, server.hold(9):
        running = pool.submit(classify, server, of("single"))
        until(lambda: server.pending() == 1)
        server.kill_child("http-0")
        with pytest.raises(httpx.TransportError):
            running.result()
    assert classify(server, of("single")).status_code == 200


def test_our_own_clients_send_a_key(server: RunningServer, tmp_path: Path) -> None:
    with Client(server.url, api_key="shop") as client, Client(server.url) as stranger:
        assert client.classify(red_image(6)).predictions[0].class_id == 6
        with pytest.raises(RejectedError) as raised:
            stranger.classify(red_image(6))
    assert (raised.value.status, raised.value.code) == (401, "unauthorized")
    (tmp_path / "6.png").write_bytes(red_image(6))
    command = [sys.executable, "-m", "resnet_serving_client", "--url", server.url, str(tmp_path / "6.png")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, API_KEY_VARIABLE: "shop\n"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def called(call: Callable[..., Any], message: Any, **metadata: str) -> tuple[str, str]:
    """Status and stable code of a refused call; `OK` and an empty string if it is not refused."""
    sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    try:
        call(message, metadata=sent, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        trailing = {each.key: str(each.value) for each in error.trailing_metadata() or ()}
        return error.code().name, trailing["code"]
    return "OK", ""


def test_grpc_asks_for_the_same_keys(server: RunningServer, stub: GRPCInferenceServiceStub) -> None:
    nobodys = ("UNAUTHENTICATED", "unauthorized")
    assert called(stub.ServerLive, pb.ServerLiveRequest()) == ("OK", "")
    assert called(stub.ServerReady, pb.ServerReadyRequest()) == ("OK", "")
    assert called(stub.ServerMetadata, pb.ServerMetadataRequest()) == nobodys
    assert called(stub.ModelInfer, pb.ModelInferRequest()) == nobodys
    assert called(stub.ServerMetadata, pb.ServerMetadataRequest(), authorization="Bearer nobody") == nobodys
    assert called(stub.ServerMetadata, pb.ServerMetadataRequest(), authorization="Bearer shop") == ("OK", "")
    assert called(stub.ServerMetadata, pb.ServerMetadataRequest(), x_api_key="shop") == ("OK", "")
    infer = pb.ModelInferRequest(model_name="none")
    assert called(stub.ModelInfer, infer, x_api_key="single") == ("NOT_FOUND", "unknown_model")
    assert called(stub.ModelInfer, infer, x_api_key="single") == ("NOT_FOUND", "unknown_model")
    assert server.metric("serving_refused_requests_total", code="unauthorized") >= 3


@pytest.mark.parametrize("action", ["Load", "Unload"])
def test_only_an_admin_changes_what_is_served_over_grpc(stub: GRPCInferenceServiceStub, action: str) -> None:
    call = getattr(stub, f"RepositoryModel{action}")
    message = getattr(pb, f"RepositoryModel{action}Request")(model_name="none")
    assert called(call, message, authorization="Bearer shop") == ("PERMISSION_DENIED", "forbidden")
    assert called(call, message, authorization="Bearer ops") == ("NOT_FOUND", "unknown_model")


def test_health_over_grpc_needs_no_key_and_tells_nothing_of_models(server: RunningServer) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        check = HealthStub(channel).Check
        assert check(HealthCheckRequest()).status == HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            check(HealthCheckRequest(service="tiny"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("key", "status"), [("", grpc.StatusCode.UNAUTHENTICATED), ("shop", grpc.StatusCode.OK)], ids=["none", "shop"]
)
def test_reflection_over_grpc_needs_one(server: RunningServer, key: str, status: grpc.StatusCode) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        ask: Any = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        asked = ask(iter([]), metadata=[("x-api-key", key)] if key else [], timeout=PATIENCE_S)
        assert asked.code() is status


def test_grpc_keeps_the_rate(stub: GRPCInferenceServiceStub, server: RunningServer, keys: Path) -> None:
    changed(server, keys, KEYS + line("rarest", "rate=0.01"))
    metadata = pb.ServerMetadataRequest()
    until(lambda: called(stub.ServerMetadata, metadata, x_api_key="rarest") == ("OK", ""))
    assert called(stub.ServerMetadata, metadata, x_api_key="rarest") == ("RESOURCE_EXHAUSTED", "rate_limited")


def test_each_request_of_a_stream_counts_and_needs_its_key_by_then(
    stub: GRPCInferenceServiceStub, server: RunningServer, keys: Path
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        next(stub.ModelStreamInfer(iter([])))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    changed(server, keys, KEYS + line("streaming", "rate=0.01 burst=2"))
    until(lambda: classify(server, of("streaming")).status_code == 200)
    requests: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()
    answers = stub.ModelStreamInfer(iter(requests.get, None), metadata=[("x-api-key", "streaming")])

    def code() -> str:
        requests.put(pb.ModelInferRequest())
        return str(next(answers).error_message.partition(":")[0])

    try:
        assert [code(), code()] == ["invalid_request", "rate_limited"]
        changed(server, keys, KEYS)
        until(lambda: code() == "unauthorized")
    finally:
        requests.put(None)


def changed(server: RunningServer, keys: Path, content: str) -> None:
    start = len(server.lines)
    keys.write_text(content)
    server.wait_for_line("API keys", start)


def test_a_file_that_changes_is_read_again_and_a_broken_one_changes_nothing(server: RunningServer, keys: Path) -> None:
    changed(server, keys, KEYS.replace("shop", "store") + line("later"))
    until(lambda: classify(server, of("later")).status_code == 200)
    changed(server, keys, "nonsense\n")
    assert "line 1: must be NAME" in server.lines[-1]
    assert classify(server, of("later")).status_code == 200
    server.kill_child("http-0")
    assert classify(server, of("later")).status_code == 200
    changed(server, keys, KEYS)
    until(lambda: classify(server, of("later")).status_code == 401)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that pages of two origins may use."""
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    (repository / "keys.txt").write_text(KEYS)
    with RunningServer(
        repository,
        api_keys=repository / "keys.txt",
        metrics_role="admin",
        cors_origins=f"{PAGE},http://other.example",
    ) as running:
        yield running


def test_metrics_can_be_for_admins_only(public: RunningServer) -> None:
    statuses = [public.client.get("/metrics", headers=headers).status_code for headers in ({}, of("shop"), of("ops"))]
    assert statuses == [401, 403, 200]


def from_page(server: RunningServer, origin: str) -> list[tuple[int, str | None]]:
    """Status and allowed origin of a preflight request, of a request with a key, and of one without."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-api-key"}
    headers = {"Origin": origin}
    answers = [
        server.client.options("/classify", headers={**headers, **asked}),
        classify(server, {**headers, **of("shop")}),
        classify(server, headers),
    ]
    return [(answer.status_code, answer.headers.get("access-control-allow-origin")) for answer in answers]


def test_pages_of_other_origins_may_if_they_are_named(public: RunningServer, server: RunningServer) -> None:
    assert from_page(public, PAGE) == [(200, PAGE), (200, PAGE), (401, PAGE)]
    assert from_page(public, "http://page.example") == [(400, None), (200, None), (401, None)]
    assert from_page(server, PAGE) == [(401, None), (200, None), (401, None)]
    asked = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    refused = public.client.options("/classify", headers=asked)
    assert refusal(refused) == (400, "cors_refused")
    assert refused.headers["vary"].startswith("Origin, ")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--api-keys", "README.md"], "README.md: "),
        (["--tls-certificate", "README.md", "--tls-key", "README.md"], "README.md are not a certificate"),
    ],
)
def test_a_server_does_not_start_unprotected(tmp_path: Path, flags: list[str], complaint: str) -> None:
    tiny.write(tmp_path)
    command = [sys.executable, "-m", "server", "--port", "0", "--repository", str(tmp_path), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_access_log_names_the_key_also_of_what_is_refused(server: RunningServer) -> None:
    for number, (headers, path) in enumerate([(of("shop"), "/models"), (of("shop"), "/v2/repository/models/x/load")]):
        server.client.post(path, headers={**headers, "X-Request-ID": f"named-{number}"})
        server.wait_for_line(rf"request_id=named-{number} .*key=shop")
    server.client.get("/models", headers={**of("nobody"), "X-Request-ID": "stranger"})
    assert "key=" not in server.wait_for_line(r"status=401 .*request_id=stranger.*")[0]
