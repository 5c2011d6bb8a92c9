"""The commands that messages tell people to run, in a clone and in an image."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from models import hints

PROJECT: dict[str, Any] = tomllib.loads((hints.ROOT / "pyproject.toml").read_text())["project"]
OF_NO_EXTRA = {"tensorrt"}
"""Only data-centre GPUs need it; other messages say so."""


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that contains only code, as in an image."""
    monkeypatch.setattr(hints, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a space in its name, whose environment is active."""
    root = tmp_path / "a clone"
    (root / "export").mkdir(parents=True)
    for name in ("pyproject.toml", "export/to_onnx.py"):
        (root / name).touch()
    monkeypatch.setattr(hints, "ROOT", root)
    monkeypatch.setattr(sys, "executable", str(root / ".venv/bin/python"))
    return root


def test_a_command_works_in_the_clone_as_it_is_said(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    install = ".venv/bin/python -m pip install --constraint constraints.txt --editable '.[grpc]'"
    assert hints.install("grpc") == install
    assert hints.export("to_onnx", "my net") == ".venv/bin/python export/to_onnx.py 'my net'"
    assert hints.missing("psutil").startswith("psutil is not installed: .venv/bin/python -m pip install")


def test_elsewhere_it_has_whole_paths(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    name = str(clone).removeprefix("/")
    python = f"'{name}/.venv/bin/python'"
    assert hints.export("to_onnx") == f"{python} '{name}/export/to_onnx.py'"
    assert hints.install("grpc").endswith(f" --constraint '{name}/constraints.txt' --editable '{name}[grpc]'")


def test_a_python_that_the_shell_finds_is_called_by_its_name(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = clone / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.touch(0o755)
    monkeypatch.setenv("PATH", str(python.parent))
    assert hints.packages("a==1", "b") == "python -m pip install a==1 b"


@pytest.mark.usefixtures("image")
def test_in_an_image_it_is_said_how_to_build_another() -> None:
    page = "(docs/guides/containers.md)"
    assert hints.install("openvino") == f"build the image with --build-arg EXTRAS=openvino {page}"
    assert hints.packages("a==1", "b") == f"build an image that has a==1 and b {page}"
    assert hints.export("to_onnx", "resnet18") == f"export/to_onnx.py resnet18 in the export image {page}"


def imported() -> Iterator[str]:
    """The top-level names of all modules that this code imports, except code that runs in separate environments."""
    for package in hints.PACKAGES:
        for path in (hints.ROOT / package).rglob("*.py"):
            if "rivals" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module.partition(".")[0]


def compared(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_by(requirements: Iterable[str]) -> set[str]:
    """The distributions that these requirements install."""
    found: set[str] = set()
    left = list(requirements)
    while left:
        line = left.pop()
        name, extras = re.fullmatch(r"([\w.-]+)(?:\[([\w,-]+)\])?.*", line).groups()  # type: ignore[union-attr]
        if name == PROJECT["name"]:
            left += [each for extra in extras.split(",") for each in PROJECT["optional-dependencies"][extra]]
        elif (name := compared(name)) not in found:
            found.add(name)
            try:
                left += [each for each in metadata.requires(name) or () if "extra ==" not in each]
            except metadata.PackageNotFoundError:  # a package for another platform
                continue
    return found


def test_every_module_that_the_server_does_not_bring_has_its_extra() -> None:
    distributions = metadata.packages_distributions()
    server = installed_by(PROJECT["dependencies"])
    others = set(imported()) - hints.PACKAGES - set(sys.stdlib_module_names) - OF_NO_EXTRA
    having = {module: {compared(name) for name in distributions.get(module, ())} for module in others}
    assert set(hints.EXTRAS) == {module for module in others if not having[module] & server}
    for module, extra in hints.EXTRAS.items():
        there = having[module] & installed_by(PROJECT["optional-dependencies"][extra])
        assert there or not having[module], (module, extra)  # some have no wheel for every machine
