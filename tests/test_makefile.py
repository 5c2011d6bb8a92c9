"""How `make` chooses a Python and keeps its environment, with fake Pythons that only report their version."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PYTHON = """#!/bin/sh
case "$*" in
    *ensurepip*) {suitable} ;;
    *"print("*) echo {version} ;;
    "-m venv --clear "*) rm -rf "$4"; mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with a space in its name, and no Python in its PATH."""
    folder = tmp_path / "a clone"
    (folder / "bin").mkdir(parents=True)
    (folder / "client").mkdir()
    for name in ("Makefile", "pyproject.toml", "client/pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    for program in ("sh", "mkdir", "cp", "sed", "rm"):
        found = shutil.which(program)
        assert found
        (folder / "bin" / program).symlink_to(found)
    return folder


def has(clone: Path, name: str, *, version: str = "3.13", suitable: bool = True) -> None:
    """Put a Python there; an unsuitable one has another version, or cannot make virtual environments."""
    path = clone / "bin" / name
    path.write_text(PYTHON.format(version=version, suitable="exit 0" if suitable else "exit 1"))
    path.chmod(0o755)


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("make")
    assert found
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}
    command = [found, "right-python", *arguments]
    return subprocess.run(
        command, cwd=clone, env={**env, "PATH": str(clone / "bin")}, capture_output=True, text=True, timeout=60
    )


def test_the_first_python_that_can_make_environments_is_taken(clone: Path) -> None:
    has(clone, "python3.11", suitable=False)
    has(clone, "python3.13")
    done = make(clone)
    assert (done.returncode, done.stdout, done.stderr) == (0, "making .venv with python3.13\n", "")
    again = make(clone)
    assert (again.returncode, "making" in again.stdout, again.stderr) == (0, False, "")


@pytest.mark.parametrize("arguments", [[], ["PYTHON=python3"], ["PYTHON=/nowhere/python"]])
def test_without_one_it_is_said_in_one_line_what_to_install(clone: Path, arguments: list[str]) -> None:
    has(clone, "python3", suitable=False)
    done = make(clone, *arguments)
    line, of_make = done.stderr.splitlines()
    assert done.returncode == 2
    assert "a Python 3.11 to 3.14 with venv and ensurepip (Debian and Ubuntu: apt install python3-venv)" in line
    assert of_make.startswith("make: ***")
    assert not (clone / ".venv").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(clone: Path) -> None:
    has(clone, "python3")
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/bin/python").symlink_to("/nowhere/python3.9")
    assert make(clone).stdout == "making .venv with python3\n"


def test_an_environment_of_another_python_is_neither_used_nor_removed(clone: Path) -> None:
    has(clone, "python3.11", version="3.11")
    has(clone, "python3.13", version="3.13")
    assert make(clone).returncode == 0
    assert make(clone, "PYTHON=python3.11").returncode == 0
    done = make(clone, "PYTHON=python3.13")
    line, _ = done.stderr.splitlines()
    assert (done.returncode, line) == (
        2,
        ".venv has another Python than python3.13: remove it first (rm -r .venv)",
    )
    has(clone, "../.venv/bin/python", version="3.10")
    done = make(clone)
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        2,
        ".venv has another Python than 3.11 to 3.14: remove it first (rm -r .venv)",
    )
