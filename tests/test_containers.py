"""The images, run by docker compose on a real engine. Takes minutes, mostly to build."""

import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import processes
from tests.server.running import PATIENCE_S, ROOT, until

ENGINE = ROOT.parent / "shared" / "containers" / "engine.sh"
"""Starts a container engine for one command, on machines without one."""
NO_ENGINE = 69
PROFILES = ["gpu", "monitoring", "loadtest"]
PHOTO = (ROOT / "export" / "photos" / "cat.jpg").read_bytes()

pytestmark = [pytest.mark.containers, pytest.mark.slow]


@pytest.fixture(scope="module")
def environment() -> Generator[dict[str, str]]:
    """The environment in which `docker` works."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
        yield dict(os.environ)
        return
    if not ENGINE.exists():
        pytest.skip(f"no container engine answers, and there is no {ENGINE}")
    # It runs until its standard input is closed.
    program = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"
    command = [str(ENGINE), "python3", "-c", program]
    with processes.started(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        line = process.stdout.readline()
        if not line:
            reason = process.stderr.read()
            assert process.wait(PATIENCE_S) == NO_ENGINE, reason
            pytest.skip(reason)
        try:
            yield json.loads(line)
        finally:
            process.stdin.close()
            process.wait(PATIENCE_S)


class Project:
    """A compose project with its own name, images and free ports."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        free = dict.fromkeys(("PORT", "GPU_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT", "LOCUST_PORT"), "0")
        self.name = f"resnet-serving-{uuid.uuid4().hex[:8]}"
        self.environment = {**environment, **free, "IMAGE": "resnet-serving-test", "COMPOSE_PROJECT_NAME": self.name}

    def docker(self, *arguments: str | Path, cwd: Path = ROOT) -> str:
        """What the command prints; if it fails, the exception holds its errors."""
        command = ["docker", *arguments]
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def compose(self, *arguments: str) -> str:
        return self.docker("compose", *arguments)

    def client(self, service: str, port: int) -> httpx.Client:
        """A client of a service at its current address, which a restart may change."""
        return httpx.Client(base_url=f"http://{self.compose('port', service, str(port)).strip()}", timeout=PATIENCE_S)

    def python(self, service: str, program: str) -> str:
        """What a program prints inside a running container."""
        return self.compose("exec", "--no-tty", service, "python", "-c", program)

    def inspect(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", self.compose("ps", "--all", "-q", service).strip()))[
            0
        ]
        return found


@pytest.fixture(scope="module")
def project(environment: dict[str, str]) -> Generator[Project]:
    """`docker compose up` on a machine without a model; returns when the server is healthy."""
    project = Project(environment)
    try:
        project.compose("up", "--build", "--detach", "--wait")
        yield project
    finally:
        project.compose("--profile", "*", "down", "--volumes")
        for title in ("resnet-serving", "resnet-serving export", "resnet-serving loadtest"):  # images of older code
            project.docker("image", "prune", "--force", "--filter", f"label=org.opencontainers.image.title={title}")


def classify(client: httpx.Client) -> str:
    answer = client.post("/classify", content=PHOTO)
    assert answer.status_code == 200, answer.text
    label: str = answer.json()["predictions"][0]["label"]
    return label


@pytest.mark.parametrize("profiles", [[], *([profile] for profile in PROFILES), PROFILES], ids=" ".join)
def test_every_profile_is_valid_and_publishes_nothing_to_the_network(
    environment: dict[str, str], profiles: list[str]
) -> None:
    flags = [flag for profile in profiles for flag in ("--profile", profile)]
    config = json.loads(Project(environment).compose(*flags, "config", "--format", "json"))
    services = config["services"].values()
    assert {profile for service in services for profile in service.get("profiles", [])} == set(profiles)
    assert {port["host_ip"] for service in services for port in service.get("ports", [])} == {"127.0.0.1"}


@pytest.mark.parametrize(("scenario", "starts"), [("", False), ("steady", True)])
def test_a_scenario_waits_for_nobody_who_starts_it_on_the_page(
    environment: dict[str, str], scenario: str, starts: bool
) -> None:
    project = Project({**environment, "SCENARIO": scenario})
    config = json.loads(project.compose("--profile", "loadtest", "config", "--format", "json"))
    assert ("--autostart" in config["services"]["loadtest"]["command"]) is starts


def test_up_on_an_empty_machine_ends_with_a_server_that_answers(project: Project) -> None:
    with project.client("server", 8000) as client:
        assert "cat" in classify(client)
    assert project.inspect("server")["State"]["Health"]["Status"] == "healthy"


def test_the_server_has_no_rights_no_torch_and_nothing_to_write_on_but_tmp(project: Project) -> None:
    program = """
import importlib.util, os, pathlib
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/1/status").read_text().splitlines())
print(os.getuid(), int(status["CapEff"], 16), int(status["NoNewPrivs"]))
print([name for name in ("torch", "onnx", "export", "pytest") if importlib.util.find_spec(name)])
print([folder for folder in ("/", "/app", "/models", "/usr/local", "/tmp") if os.access(folder, os.W_OK)])
"""
    assert project.python("server", program).splitlines() == ["10001 0 1", "[]", "['/tmp']"]


def test_the_image_has_its_licence_and_those_of_what_it_contains(project: Project) -> None:
    program = """
import pathlib
folder = pathlib.Path("/usr/local/share/licenses/resnet-serving")
print((folder / "LICENSE").read_text().split()[:2])
print([name in (folder / "THIRD_PARTY_NOTICES.txt").read_text() for name in ("onnxruntime", "Pillow", "uvicorn")])
"""
    assert project.python("server", program).splitlines() == ["['Apache', 'License']", "[True, True, True]"]


def test_the_server_can_speak_grpc(project: Project) -> None:
    assert project.python("server", "import server.grpc.service as s; print(s.__name__)") == "server.grpc.service\n"


def test_up_again_finds_the_model_and_exports_nothing(project: Project) -> None:
    models = "import pathlib; print(sorted((str(p), p.stat().st_mtime) for p in pathlib.Path('/models').rglob('*')))"
    before = project.python("server", models)
    project.compose("up", "--detach", "--wait")
    assert "is already exported" in project.compose("logs", "--no-log-prefix", "export")
    assert project.python("server", models) == before


def test_a_killed_engine_is_replaced_and_the_server_answers(project: Project) -> None:
    ready = r"engine is ready, process (\d+)"
    engines = re.findall(ready, project.compose("logs", "server"))
    with project.client("server", 8000) as client:
        project.python("server", f"import os; os.kill({engines[-1]}, 9)")
        assert "cat" in classify(client)
        assert 'serving_process_restarts_total{process="engine"} 1.0' in client.get("/metrics").text
    assert len(re.findall(ready, project.compose("logs", "server"))) == len(engines) + 1


def test_a_restart_drains_and_serves_again(project: Project) -> None:
    project.compose("stop", "server")
    assert project.inspect("server")["State"]["ExitCode"] == 0
    assert "draining" in project.compose("logs", "server")
    project.compose("up", "--detach", "--wait", "--no-deps", "server")
    with project.client("server", 8000) as client:
        assert "cat" in classify(client)


def test_docker_waits_longer_for_the_end_than_the_server_takes(project: Project) -> None:
    assert project.inspect("server")["Config"]["StopTimeout"] > 30 + 2 * 5  # drain_timeout_ms, child.STOP_S


def test_workers_of_the_load_test_share_its_load(project: Project) -> None:
    project.compose("--profile", "loadtest", "up", "--build", "--detach", "--scale", "loadtest-worker=2")
    with project.client("loadtest", 8089) as client:

        def stats() -> dict[str, Any]:
            try:
                found: dict[str, Any] = client.get("/stats/requests").json()
            except httpx.TransportError:  # it is starting
                return {"workers": []}
            return found

        until(lambda: len(stats()["workers"]) == 2)
        client.post("/swarm", data={"user_count": "2", "spawn_rate": "2", "host": "http://server:8000"})
        until(lambda: stats()["stats"][-1]["num_requests"] > 20)
        client.post("/stop").raise_for_status()
        assert stats()["stats"][-1]["num_failures"] == 0
        assert stats()["fail_ratio"] == 0


def test_new_code_leaves_the_layers_with_packages_as_they_are(project: Project, tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "server" / "new.py").write_text('"""New."""\n')
    new = f"{project.name}:new"
    project.docker("build", "--target", "cpu", "--tag", new, ".", cwd=tmp_path)
    layers, others = (
        json.loads(project.docker("inspect", "--format", "{{json .RootFS.Layers}}", image))
        for image in ("resnet-serving-test:cpu", new)
    )
    project.docker("image", "rm", new)
    own = 3  # models, server, deploy
    assert layers[:-own] == others[:-own]
    assert layers != others
