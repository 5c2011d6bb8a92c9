"""Third-party programs that read the OpenAPI document of a running server: `make programs`."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.programs import having
from tests.server.running import RunningServer, red_image

pytestmark = pytest.mark.programs

USE = """
import sys
import openapi_client

url, image = sys.argv[1:]
with openapi_client.ApiClient(openapi_client.Configuration(host=url)) as client:
    api = openapi_client.ClassifyApi(client)
    print(api.classify(open(image, "rb").read(), top_k=2).predictions[0].class_id)
    try:
        api.classify(b"no image")
    except openapi_client.ApiException as error:
        print(error.status, error.data.code)
"""
USE_TYPES = """
import type { components, operations } from "./types";

const first = (found: components["schemas"]["Classification"]): number | undefined => found.predictions[0]?.class_id;
const code: components["schemas"]["Problem"]["code"] = "not_an_image";
const query: operations["classify"]["parameters"]["query"] = { top_k: 2, priority: "high" };
type Failure = operations["classify"]["responses"]["4XX"]["content"]["application/problem+json"];
const message = (failure: Failure): string => `${failure.status} ${failure.detail}`;
export { first, code, query, message };
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    with RunningServer(repository) as running:
        yield running


@pytest.fixture
def document(server: RunningServer, tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_bytes(server.client.get("/openapi.json").content)
    return path


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_redocly_finds_nothing_but_that_the_licence_is_not_named(document: Path) -> None:
    redocly = having.node("@redocly/cli@2.77.0", "redocly")
    said = run(redocly, "lint", document.name, "--skip-rule", "info-license", cwd=document.parent)
    assert "warning" not in said.lower().replace("deprecation warning", ""), said


def test_types_of_openapi_typescript_are_used(document: Path) -> None:
    generator = having.node("openapi-typescript@7.13.0", "openapi-typescript")
    compiler = having.node("typescript@5.9.3", "tsc")
    run(generator, document.name, "-o", "types.ts", cwd=document.parent)
    (document.parent / "use.ts").write_text(USE_TYPES)
    run(compiler, "--noEmit", "--strict", "--noUncheckedIndexedAccess", "use.ts", cwd=document.parent)


def test_the_python_client_of_openapi_generator_classifies_and_reads_errors(
    server: RunningServer, document: Path
) -> None:
    python = having.python("openapi")
    if not shutil.which("java"):
        pytest.skip("OpenAPI Generator runs on Java, which is not installed")
    folder = document.parent
    generator = python.with_name("openapi-generator-cli")
    run(generator, "generate", "-i", document.name, "-g", "python", "-o", "made", cwd=folder)
    (folder / "use.py").write_text(USE)
    (folder / "9.png").write_bytes(red_image(9))
    variables = {**os.environ, "PYTHONPATH": str(folder / "made")}
    command: list[str | Path] = [python, "use.py", server.url, "9.png"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.stdout.split() == ["9", "415", "not_an_image"], done.stderr
