"""The OpenAPI document is true: what it describes is what a client gets, whatever that client sends."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from server.errors import Code
from server.http.described import OPERATIONS
from tests.server.running import RunningServer, red_image

EXAMPLES = 40
FEWER = 5
"""For each operation of third-party protocols, which have other tests."""

Json = dict[str, Any]


@pytest.fixture(scope="module")
def document(server: RunningServer) -> Json:
    found: Json = server.client.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def operations(document: Json) -> dict[str, Json]:
    """The operations by their ids."""
    listed = [operation for methods in document["paths"].values() for operation in methods.values()]
    found = {operation["operationId"]: operation for operation in listed}
    assert len(found) == len(listed)
    return found


def resolved(document: Json, found: Json) -> Json:
    """A response, with its reference resolved."""
    reference = found.get("$ref")
    answer: Json = document["components"]["responses"][reference.split("/")[-1]] if reference else found
    return answer


def contents(document: Json, operation: Json) -> Iterator[Json]:
    """The contents of an operation's request and of all its answers."""
    for each in (operation.get("requestBody", {}), *operation["responses"].values()):
        yield from resolved(document, each).get("content", {}).values()


def test_operations_have_short_names_and_each_says_what_it_answers(operations: dict[str, Json]) -> None:
    ours = {name for name in operations if not name.startswith(("v1_", "v2_", "huggingface_"))}
    assert ours == {"page", "classify", "classify_batch", "embed", "models", "livez", "readyz", "metrics"}
    others = {name.removesuffix("_of_version") for name in operations.keys() - ours}
    assert others == OPERATIONS.keys()


def test_every_operation_says_how_it_fails(document: Json, operations: dict[str, Json]) -> None:
    for name, operation in operations.items():
        for status in ("4XX", "5XX"):
            (failure,) = resolved(document, operation["responses"][status])["content"].items()
            others = name.startswith(("v1_", "v2_", "huggingface_"))
            kind, schema = ("application/json", "ShortError") if others else ("application/problem+json", "Problem")
            assert (failure[0], failure[1]["schema"]) == (kind, {"$ref": f"#/components/schemas/{schema}"}), name
    codes = document["components"]["schemas"]["ErrorCode"]
    assert {*Code, "internal_error", "not_found"} < {*codes["x-extensible-enum"]}
    assert "enum" not in codes  # or clients would fail at a later version's codes


def test_every_example_fits_its_schema(document: Json, operations: dict[str, Json]) -> None:
    found = [content for operation in operations.values() for content in contents(document, operation)]
    examples = [content for content in found if "example" in content]
    assert len(examples) > len(operations)
    for content in examples:
        schema = {"allOf": [content["schema"]], "components": document["components"]}
        jsonschema.validate(content["example"], schema, jsonschema.Draft202012Validator)


def test_operations_are_in_groups_that_people_and_programs_have_names_for(document: Json) -> None:
    groups = {tag["name"]: tag["x-displayName"] for tag in document["tags"]}
    used = {tag for methods in document["paths"].values() for each in methods.values() for tag in each["tags"]}
    assert used == groups.keys()
    assert list(groups.values())[:4] == ["Classify", "Models", "Probes and metrics", "Open Inference Protocol"]


def test_what_errors_have_in_common_is_said_once(document: Json) -> None:
    about = document["info"]["description"]
    for code in {*Code, "not_found", "shutting_down"}:
        assert about.count(f"| `{code}`") + about.count(f", `{code}`") == 1
    assert "application/problem+json" in about
    assert not [each for each in document["components"]["responses"].values() if "`queue_full`" in each["description"]]


def test_no_parameter_may_be_null(operations: dict[str, Json]) -> None:
    parameters = [each for operation in operations.values() for each in operation.get("parameters", ())]
    assert {"top_k", "version", "X-Request-Timeout"} < {each["name"] for each in parameters}
    assert [each for each in parameters if "null" in str(each["schema"])] == []
    limits = {each["name"]: each["schema"] for each in parameters if each["in"] != "path"}
    assert (limits["version"]["minimum"], limits["X-Request-Timeout"]["maximum"]) == (1, 3600)


def test_keys_are_declared_and_nobody_needs_one_here(document: Json, operations: dict[str, Json]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert (schemes["bearer"]["scheme"], schemes["api_key"]["name"]) == ("bearer", "X-API-Key")
    assert operations["classify"]["security"] == [{}, {"bearer": []}, {"api_key": []}]
    assert operations["livez"]["security"] == operations["page"]["security"] == []


def test_a_generated_python_client_classifies_and_reads_errors(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yml").write_text("post_hooks: []\n")
    (tmp_path / "openapi.json").write_bytes(server.client.get("/openapi.json").content)
    command: list[str | Path] = [Path(sys.executable).with_name("openapi-python-client"), "generate", "--meta", "none"]
    command += ["--config", "config.yml", "--path", "openapi.json", "--output-path", "generated_client"]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    left_out = [line for line in done.stdout.splitlines() if line.startswith(("Unsupported", "Unable", "ERROR"))]
    assert set(left_out) == {"Unsupported content type image/*", "Unsupported content type application/zip"}
    monkeypatch.syspath_prepend(tmp_path)
    generated, types = import_module("generated_client"), import_module("generated_client.types")
    classify = import_module("generated_client.api.classify.classify")
    metadata = import_module("generated_client.api.v2.v2_metadata")
    with generated.Client(base_url=server.url) as client:
        found = classify.sync(client=client, body=types.File(payload=BytesIO(red_image(7))), top_k=2)
        assert [each.class_id for each in found.predictions][:1] == [7]
        problem = classify.sync(client=client, body=types.File(payload=BytesIO(b"no image")))
        assert (problem.status, problem.code) == (415, Code.NOT_AN_IMAGE)
        assert metadata.sync("tiny", client=client).versions == ["1", "2"]
        assert metadata.sync("nothing", client=client).code == Code.UNKNOWN_MODEL


@pytest.mark.slow
def test_no_request_makes_the_server_contradict_its_document(server: RunningServer, tmp_path: Path) -> None:
    # A client that allows one millisecond and gets 504 has found no error of the server.
    expected = 'not_a_server_error.expected-statuses = ["2xx", "4xx", "503", "504"]'
    fewer = f'[[operations]]\ninclude-tag = ["v1", "v2", "huggingface"]\ngeneration.max-examples = {FEWER}'
    (tmp_path / "schemathesis.toml").write_text(f"[checks]\n{expected}\n{fewer}\n")
    schemathesis = Path(sys.executable).with_name("schemathesis")
    command = [
        str(schemathesis),
        "run",
        f"{server.url}/openapi.json",
        "--max-examples",
        str(EXAMPLES),
        "--seed",
        "1",
    ]
    # No schema can say that a string of bytes is an image, so refusing other bytes is no contradiction.
    # A client that allows a millisecond gets a 504: the log, not the status, shows errors of the server's own.
    command += ["--exclude-checks", "positive_data_acceptance,not_a_server_error"]
    start = len(server.lines)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert not [line for line in server.lines[start:] if "ERROR" in line or "Traceback" in line]
    assert "classify" in server.client.get("/openapi.json").text
