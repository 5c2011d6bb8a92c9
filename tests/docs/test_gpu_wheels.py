"""The wheels collected for the machine are those in pyproject.toml and constraints.txt, each listed once."""

import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docs.measurements.gpu import wheels

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted(extras: wheels.Extras) -> set[str]:
    return {str(canonicalize_name(one.name)) for one in wheels.wanted(PROJECT, extras)}


def test_the_first_folder_has_the_service_and_the_export() -> None:
    assert wanted(wheels.SERVICE) - wheels.THERE >= {
        "fastapi",
        "uvicorn",
        "pydantic",
        "msgspec",
        "httptools",
        "onnxscript",
    }
    assert not wanted(wheels.SERVICE) & {"onnxruntime-gpu", "locust", "matplotlib"}


def test_every_package_that_is_named_is_in_its_extra_and_has_its_version_in_the_constraints() -> None:
    pins = wheels.constraints((ROOT / "constraints.txt").read_text())
    for extras in (wheels.SERVICE, wheels.ONNX, wheels.DECODER):
        assert wanted(extras) - wheels.THERE <= set(pins)


def test_needs_are_those_of_the_machine() -> None:
    metadata = b"\n".join(
        [
            b"Name: one",
            b"Requires-Dist: always>=1",
            b'Requires-Dist: old; python_version < "3.11"',
            b'Requires-Dist: elsewhere; sys_platform == "win32"',
            b'Requires-Dist: extra; extra == "more"',
            b"",
        ]
    )
    assert [one.name for one in wheels.needs(metadata, ())] == ["always"]
    assert [one.name for one in wheels.needs(metadata, ("more",))] == ["always", "extra"]


def test_what_the_first_call_needs_of_the_data_comes_first(tmp_path: Path) -> None:
    for name in ("weights/cifar10/resnet20-1.th", "weights/cifar10/resnet32-1.th", "data/imagenet-sample/a.JPEG"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert [name for name, _ in wheels.data(tmp_path)] == [
        "shared/weights/cifar10/resnet20-1.th",
        "shared/data/imagenet-sample/a.JPEG",
        "shared/weights/cifar10/resnet32-1.th",
    ]
    assert Requirement("torch").name in wheels.THERE  # far too large to send


def test_the_project_and_a_folder_travel_together() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no clone")
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    project_bytes = sum(path.stat().st_size for path in files if path.is_file())
    assert project_bytes + wheels.ROOM_MIB * 2**20 < 63 * 2**20  # 64 are allowed


def test_plugins_that_pytests_settings_need_come_along() -> None:
    plugins = {one.name for one in wheels.wanted(PROJECT, {"test": None}) if one.name.startswith("pytest-")}
    assert plugins <= wanted(wheels.SERVICE)
