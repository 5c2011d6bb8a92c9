"""Unmodified third-party programs against a real server: `make programs`."""

import base64
import json
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import tiny
from tests.programs import having
from tests.server.running import RunningServer, red_image

pytestmark = pytest.mark.programs
IMAGE_CLIENT = "d39b7e14b3af9d028ceb8fd2e99edf78cdec8312c6731d5a77c7d1ab904759c0"
ENSEMBLE_CLIENT = "7ff5c7bf5c0e6c71d4cca7386799dc825fc5e61663ed9af4eaa61c2051e7fe7e"
SCALINGS = {"images": "NONE", "inception": "INCEPTION", "vgg": "VGG"}
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    tiny.write(repository, version=2)
    with RunningServer(repository, grpc_port=0, queue_size=32) as running:
        yield running


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for red in (9, 200):
        (folder / f"{red:03}.png").write_bytes(red_image(red))
    return folder


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def address(server: RunningServer) -> str:
    return urlsplit(server.url).netloc


@pytest.fixture(scope="module")
def image_client() -> list[str | Path]:
    return [having.python("triton"), having.example("image_client.py", IMAGE_CLIENT)]


@pytest.mark.parametrize("view", SCALINGS)
@pytest.mark.parametrize("ways", [["HTTP"], ["HTTP", "-a"], ["gRPC"], ["gRPC", "-a"], ["gRPC", "--streaming"]], ids=str)
def test_tritons_image_client(
    image_client: list[str | Path], server: RunningServer, images: Path, view: str, ways: list[str]
) -> None:
    url = server.grpc_address if ways[0] == "gRPC" else address(server)
    asked = ["-m", f"tiny:{view}", "-s", SCALINGS[view], "-u", url, "-i", *ways, "-b", "2", "-c", "2"]
    lines = run(*image_client, *asked, images).splitlines()
    assert lines[-1] == "PASS"
    assert [line.split(" = ")[1] for line in lines if " = " in line] == ["red 9", "red 8", "red 200", "red 199"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritons_client_of_ensembles(server: RunningServer, images: Path, protocol: str) -> None:
    command = [having.python("triton"), having.example("ensemble_image_client.py", ENSEMBLE_CLIENT)]
    url = server.grpc_address if protocol == "grpc" else address(server)
    lines = run(*command, "-m", "tiny:encoded", "-u", url, "-i", protocol, images).splitlines()
    assert [line.split(" = ")[1] for line in lines if " = " in line] == ["red 9", "red 200"]


@pytest.fixture(scope="module")
def perf_analyzer() -> list[str | Path]:
    return having.perf_analyzer()


@pytest.mark.parametrize(
    ("model", "protocol", "options"),
    [
        ("tiny:images", "http", ()),
        ("tiny:vgg", "http", ("-b", "4", "--input-data", "zero")),
        ("tiny:images", "grpc", ("--async",)),
        ("tiny:encoded", "grpc", ("--async", "--streaming", "--input-data", "DATA")),
    ],
)
def test_perf_analyzer(
    perf_analyzer: list[str | Path],
    server: RunningServer,
    tmp_path: Path,
    model: str,
    protocol: str,
    options: tuple[str, ...],
) -> None:
    element = struct.pack("<I", len(red_image(9))) + red_image(9)  # BYTES as in a message
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"data": [{"encoded": {"b64": base64.b64encode(element).decode()}}]}))
    url = server.grpc_address if protocol == "grpc" else address(server)
    window = ["--measurement-mode", "count_windows", "--measurement-request-count", "20", "-s", "999", "-r", "3"]
    given = [str(data) if option == "DATA" else option for option in options]
    report = run(*perf_analyzer, "-m", model, "-u", url, "-i", protocol, *window, *given)
    inferences, requests = (
        int(found[1])
        for name in ("Inference count", "Successful request count")
        if (found := re.search(rf"{name}: (\d+)", report))
    )
    batch = 4 if "-b" in options else 1
    assert abs(inferences - requests * batch) <= 2 * batch, report  # it reads the count while a request is under way
    latency = re.search(r"Avg request latency: (\d+) usec \(overhead (\d+) usec \+ queue (\d+)", report)
    assert latency, report
    assert int(latency[1]) > int(latency[2])


def test_pytritons_clients(server: RunningServer, images: Path) -> None:
    python = having.python("triton")
    printed = run(python, HERE / "pytriton_clients.py", address(server), server.grpc_address, *sorted(images.iterdir()))
    assert json.loads(printed.splitlines()[-1]) == [[9, 200]] * 11


def test_kserves_sdk(server: RunningServer, images: Path) -> None:
    python = having.python("kserve")
    printed = run(python, HERE / "kserve_clients.py", server.url, server.grpc_address, *sorted(images.iterdir()))
    found, ready = json.loads(printed.splitlines()[-1])
    assert found == [[9, 200]] * 5
    assert ready == [True] * 8
