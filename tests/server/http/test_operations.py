"""The routes for operators of a running server."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from server import VERSION
from tests import tiny
from tests.server.running import RunningServer, red_image


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two good models, one with a wrong digest, one with a broken manifest."""
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository, "good")
    tiny.write(repository, "good", version=2)
    tiny.write(repository, "tampered")
    with (repository / "tampered/1/model.onnx").open("ab") as file:
        file.write(b"!")
    mismatched = tiny.write(repository, "mismatched")
    few = mismatched.model_copy(update={"labels": mismatched.labels[:200], "num_classes": 200})
    (repository / "mismatched/1/manifest.json").write_text(few.model_dump_json())
    tiny.write(repository, "piped")
    (repository / "piped/1/manifest.json").unlink()
    os.mkfifo(repository / "piped/1/manifest.json")
    tiny.write(repository, "garbled")
    (repository / "garbled/1/manifest.json").write_text("{")
    with RunningServer(repository, default_model="good") as running:
        yield running


def test_the_listing_names_what_is_served_and_why_the_rest_is_not(server: RunningServer) -> None:
    listing = server.client.get("/models").json()
    served = [(model["name"], model["version"], model["default"]) for model in listing["models"]]
    assert served == [("good", 1, False), ("good", 2, True)]
    assert "SHA-256" in listing["refused"]["tampered version 1"]
    assert "does not rank 200 classes" in listing["refused"]["mismatched version 1"]
    assert "is no file" in listing["refused"]["piped version 1"]
    assert "manifest.json" in listing["refused"]["garbled version 1"]


def test_a_broken_model_takes_no_good_one_down(server: RunningServer) -> None:
    assert server.classify(red_image(3)).json()["predictions"][0]["class_id"] == 3
    assert server.classify(red_image(3), model="tampered").json()["code"] == "unknown_model"


def test_the_probes_answer(server: RunningServer) -> None:
    assert server.client.get("/livez").text == "ok"
    assert server.client.get("/readyz").text == "ok"
    assert server.client.head("/readyz").status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/models", "/livez", "/metrics", "/openapi.json", "/v2", "/v2/models/good"]
)
def test_head_is_answered_as_get_is_without_the_content(server: RunningServer, path: str) -> None:
    head, get = server.client.head(path), server.client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # its content changes
        assert head.headers["content-length"] == get.headers["content-length"]


def test_what_has_no_get_has_no_head(server: RunningServer) -> None:
    assert server.client.head("/classify").status_code == 405


def test_a_server_is_not_ready_without_a_model_that_must_be_there(tmp_path: Path) -> None:
    tiny.write(tmp_path, "good")
    tiny.write(tmp_path, "tampered")
    (tmp_path / "tampered/1/model.onnx").write_bytes(b"")
    with RunningServer(tmp_path, models="good,tampered", default_model="good") as server:
        response = server.client.get("/readyz")
        assert (response.status_code, "tampered" in response.text) == (503, True)
        assert server.classify(red_image(4)).status_code == 200


def test_the_metrics_count_requests_batches_and_times_of_all_processes(server: RunningServer) -> None:
    before = server.metric("serving_request_seconds_count", model="good")
    server.classify_all([red_image(5)] * 20, 4)
    assert server.metric("serving_request_seconds_count", model="good") == before + 20
    for stage in ("decode_wait", "decode"):
        assert server.metric(f"serving_{stage}_seconds_count", model="good") == before + 20
    assert server.metric("serving_queue_seconds_count", model="good") == before + 20
    assert server.metric("serving_inference_seconds_count", model="good") == before + 20
    assert server.metric("serving_batch_size_sum", model="good") == before + 20
    assert server.metric("serving_engine_ready") == 1


PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (PROMETHEUS, "application/openmetrics-text"),
        ("application/openmetrics-text", "application/openmetrics-text"),
        ("application/openmetrics-text;version=99;escaping=none", "application/openmetrics-text"),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.9", "text/plain"),
        ("application/openmetrics-text;q=0", "text/plain"),
        ("*/*", "text/plain"),
        ("", "text/plain"),
    ],
)
def test_metrics_come_as_openmetrics_to_who_prefers_that(server: RunningServer, accept: str, kind: str) -> None:
    answer = server.client.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].split(";")[0] == kind
    assert answer.headers["vary"] == "Accept"
    assert answer.text.endswith("# EOF\n") == (kind != "text/plain")
    parse = openmetrics_families if kind != "text/plain" else text_string_to_metric_families
    assert "serving_requests" in {family.name for family in parse(answer.text)}


def test_the_metrics_say_what_serves_and_what_each_process_takes(server: RunningServer) -> None:
    families = {family.name: family for family in text_string_to_metric_families(server.client.get("/metrics").text)}
    (build,) = families["serving_build_info"].samples
    assert build.labels["version"] == VERSION
    assert build.labels["python"] == platform.python_version()
    assert {"onnxruntime", "onnxruntime_gpu"} & build.labels.keys()
    resident = {each.labels["process"]: each.value for each in families["process_resident_memory_bytes"].samples}
    assert resident.keys() == {"supervisor", "http-0", "engine"}
    assert min(resident.values()) > 2**20
    for name in ("process_cpu_seconds", "process_open_fds", "process_start_time_seconds"):
        assert {each.labels["process"] for each in families[name].samples} == resident.keys()
