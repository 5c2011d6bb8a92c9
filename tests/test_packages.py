"""The client's wheel and sdist, built and used where nothing else is installed; the server builds no wheel."""

import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.server.running import PATIENCE_S, ROOT, RunningServer, red_image

CLIENT = tomllib.loads((ROOT / "client/pyproject.toml").read_text())
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hatchling(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables with which the build backend can be imported, as pip does it."""
    folder = tmp_path_factory.mktemp("hatchling")
    for requirement in CLIENT["build-system"]["requires"]:
        install(folder, requirement)
    return {**os.environ, "PYTHONPATH": str(folder)}


def install(folder: Path, what: str | Path) -> None:
    """Install a package and its requirements into a folder."""
    command: list[str | Path] = [*PIP, "install", "--quiet", "--no-compile", "--target", folder, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"the package index cannot be reached: {done.stderr}")
    assert done.returncode == 0, done.stderr


def build(hatchling: dict[str, str], folder: Path, out: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "--directory", out, *targets]
    return subprocess.run(command, cwd=folder, env=hatchling, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def built(hatchling: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the client's wheel and sdist."""
    folder = tmp_path_factory.mktemp("built")
    done = build(hatchling, ROOT / "client", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_clients_wheel_has_one_package_its_types_and_its_licence(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    name, version = CLIENT["project"]["name"], CLIENT["project"]["version"]
    assert {path.partition("/")[0] for path in names} == {
        "resnet_serving_client",
        f"resnet_serving_client-{version}.dist-info",
    }
    assert "resnet_serving_client/py.typed" in names
    assert any(path.endswith("/LICENSE") for path in names)
    lines = metadata.splitlines()
    assert {f"Name: {name}", "License-Expression: Apache-2.0", "Requires-Python: >=3.11"} <= set(lines)
    assert not [line for line in lines if line.startswith(("Author", "Maintainer", "Home-page", "Project-URL"))]


def test_its_sdist_makes_the_same_wheel(hatchling: dict[str, str], built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    done = build(hatchling, folder, tmp_path / "out", "-t", "wheel")
    assert done.returncode == 0, done.stderr
    (again,) = (tmp_path / "out").iterdir()
    (wheel,) = built.glob("*.whl")
    with ZipFile(wheel) as one, ZipFile(again) as other:
        assert one.namelist() == other.namelist()


def test_the_wheel_works_where_nothing_else_is(built: Path, server: RunningServer, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    install(tmp_path / "site", wheel)
    (tmp_path / "9.png").write_bytes(red_image(9))
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    env = {"PYTHONPATH": str(tmp_path / "site"), "PYTHONNOUSERSITE": "1"}
    program = f"""
from resnet_serving_client import Client
with Client({server.url!r}) as client:
    print(client.classify(open("9.png", "rb").read()).predictions[0].label)
"""
    command: list[str | Path] = [tmp_path / "site/bin/classify", "--url", server.url, "9.png"]
    commands: list[list[str | Path]] = [[python, *command], [python, "-c", program]]
    for arguments in commands:
        done = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
        assert (done.returncode, done.stderr) == (0, "")
        assert "red 9" in done.stdout


def test_the_server_refuses_to_be_a_wheel_in_one_sentence(hatchling: dict[str, str], tmp_path: Path) -> None:
    done = build(hatchling, ROOT, tmp_path, "-t", "wheel")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("resnet-serving is not installed as a wheel, as its packages 'models', 'server'")
    assert list(tmp_path.iterdir()) == []
