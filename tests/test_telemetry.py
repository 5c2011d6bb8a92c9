"""Neither serving nor exporting reports anything to anybody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["server.engine.backends.onnx", "export.quantization"])
def test_onnx_runtime_starts_without_its_telemetry(module: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "CI"))}
    command = [sys.executable, "-c", f"import {module}"]
    subprocess.run(command, env=environment | {"TMPDIR": str(tmp_path)}, check=True)
    assert not list(tmp_path.iterdir())  # its session file


@pytest.mark.parametrize("module", ["server.engine.backends.openvino", "export.backends"])
def test_openvino_starts_without_its_telemetry(module: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CI")}
    command = [sys.executable, "-c", f"import {module}, openvino"]
    subprocess.run(command, env=environment | {"HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.iterdir())  # its identifier and counters
