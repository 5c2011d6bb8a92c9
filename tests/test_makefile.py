"""How `make` chooses a Python, keeps its environment and serves, with fake Pythons that do none of the work."""

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
    "-m server "*) {server} ;;
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
    for program in ("sh", "mkdir", "cp", "sed", "rm", "sleep"):
        found = shutil.which(program)
        assert found
        (folder / "bin" / program).symlink_to(found)
    return folder


def has(clone: Path, name: str, *, version: str = "3.13", suitable: bool = True, server: str = "exit 1") -> None:
    """Put a Python there; an unsuitable one has another version, or cannot make virtual environments."""
    path = clone / "bin" / name
    path.write_text(PYTHON.format(version=version, suitable="exit 0" if suitable else "exit 1", server=server))
    path.chmod(0o755)


def make(clone: Path, *arguments: str, target: str = "right-python") -> subprocess.CompletedProcess[str]:
    found = shutil.which("make")
    assert found
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}
    command = [found, target, *arguments]
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


@pytest.fixture
def installed(clone: Path) -> Path:
    """The clone after its installation."""
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/export.done").touch()
    os.utime(clone / ".venv/export.done", (2**32, 2**32))  # newer than the Python of each test
    return clone


def test_the_first_photo_is_sent_to_where_the_server_is_ready(installed: Path) -> None:
    """Not to where the variables say: a flag may have moved it."""
    classify = installed / ".venv/bin/classify"
    classify.write_text('#!/bin/sh\necho "classify $*"\necho done >done\n')
    classify.chmod(0o755)
    ready = """echo '{"url": "https://[::1]:9000", "grpc": null}' >"$4"; until [ -s done ]; do sleep 0.01; done; exit"""
    has(installed, "../.venv/bin/python", server=f"echo $*; {ready}")
    done = make(installed, "FLAGS=--port 9000 --host ::1", target="serve")
    assert done.returncode == 0, done.stderr
    assert "classify --url https://[::1]:9000 export/photos/cat.jpg\n" in done.stdout
    assert "-m server --ready-file .venv/ready.json --port 8000 --port 9000 --host ::1\n" in done.stdout


def test_nothing_waits_for_a_server_that_does_not_start(installed: Path) -> None:
    (installed / ".venv/ready.json").write_text('{"url": "http://127.0.0.1:1"}')  # left by a server that was killed
    has(installed, "../.venv/bin/python", server="exit 1")
    done = make(installed, target="serve")
    assert (done.returncode, "classify" in done.stdout + done.stderr) == (2, False)
