"""The packages that images install before the code."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(*arguments: str) -> list[str]:
    command = [sys.executable, str(ROOT / "deploy" / "requirements.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_server_needs_the_dependencies_alone() -> None:
    assert requirements() == PROJECT["dependencies"]


def test_extras_come_with_them_or_alone() -> None:
    assert requirements("export", "gpu") == PROJECT["dependencies"] + EXTRAS["export"] + EXTRAS["gpu"]
    assert requirements("loadtest", "--extras-only") == EXTRAS["loadtest"]


def test_a_package_is_left_out_by_its_whole_name() -> None:
    without = requirements("gpu", "--without", "onnxruntime")
    assert not [line for line in without if line.startswith("onnxruntime==")]
    assert set(EXTRAS["gpu"]) <= set(without)


def test_an_extra_that_does_not_exist_is_an_error() -> None:
    done = subprocess.run([sys.executable, ROOT / "deploy" / "requirements.py", "gpus"], cwd=ROOT, capture_output=True)
    assert done.returncode == 2
    assert b"no extra gpus" in done.stderr
