"""Fixtures that more than one part of the tests uses. Each network is exported once, by the real command."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A shell has what it starts in the background ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def run_to_onnx(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python export/to_onnx.py` from the repository's root until it ends."""
    command = [sys.executable, ROOT / "export" / "to_onnx.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data and weights beside the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    return folder


@pytest.fixture(scope="session")
def model_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with efficientnet_lite0 version 1."""
    repository = tmp_path_factory.mktemp("model_repository")
    done = run_to_onnx("efficientnet_lite0", "--repository", repository)
    assert done.returncode == 0, done.stderr
    return repository


@pytest.fixture(scope="session")
def cifar_repository(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the trained cifar_resnet20, 32, 44 and 56, each version 1."""
    repository = tmp_path_factory.mktemp("cifar_repository")

    def export(checkpoint: Path) -> None:
        name = f"cifar_{checkpoint.name.partition('-')[0]}"
        done = run_to_onnx(name, "--weights", checkpoint, "--repository", repository)
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(export, sorted((shared / "weights" / "cifar10").glob("resnet*.th"))))
    return repository
