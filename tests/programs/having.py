"""Locates third-party programs that this project does not depend on: installs or fetches each, or skips the test."""

import hashlib
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.server.running import ROOT

FOLDER = ROOT / ".venv" / "programs"
EXAMPLES = (
    "https://raw.githubusercontent.com/triton-inference-server/client/58a44caa0dce77303115302e6dbdf64626b2b093/"
    "src/python/examples"
)
"""Examples of Triton's clients: they are in no package, and not ours to distribute."""
FETCH_S = 20.0
DEBIAN = ("libc6", "libstdc++6", "libgcc-s1", "libssl3t64", "zlib1g", "libzstd1")
"""The libraries that perf_analyzer is linked with."""


def python(name: str) -> Path:
    """The Python of the environment that `make programs` makes from NAME.txt."""
    found = FOLDER / name / "bin" / "python"
    if not found.exists():
        pytest.skip(f"{name} is not there: make programs installs it")
    return found


def node(package: str, program: str) -> Path:
    """A program of an npm package, "name@version", which is installed once."""
    folder = FOLDER / "npm" / package.replace("/", "+")
    found = folder / "node_modules" / ".bin" / program
    if not found.exists():
        if not shutil.which("npm"):
            pytest.skip(f"{package} is not there, nor is npm, which installs it")
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, package], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"npm cannot install {package}: {done.stderr.strip().splitlines()[:1]}")
    return found


def example(name: str, sha256: str) -> Path:
    """One of Triton's examples, fetched once."""
    path = FOLDER / name
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(f"{EXAMPLES}/{name}", timeout=FETCH_S) as response:
                path.write_bytes(response.read())
        except OSError as error:
            pytest.skip(f"{name} cannot be fetched: {error}; put it into {FOLDER}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256, f"{path} is another {name}"
    return path


def perf_analyzer() -> list[str | Path]:
    """The command to run it: with Debian 13's libraries if this machine's are older."""
    program = python("perf_analyzer").with_name("perf_analyzer")
    program.chmod(0o755)
    command: list[str | Path] = [program]
    if not _runs(command):
        libraries = FOLDER / "debian13" / "usr" / "lib" / "x86_64-linux-gnu"
        if not libraries.exists():
            _unpack_debian(FOLDER / "debian13")
        command = [libraries / "ld-linux-x86-64.so.2", "--library-path", libraries, program]
        if not _runs(command):
            pytest.skip("perf_analyzer does not run on this machine")
    return command


def _runs(command: list[str | Path]) -> bool:
    try:
        return subprocess.run([*command, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def _unpack_debian(folder: Path) -> None:
    """Unpack Debian 13's libraries below a folder, with an older Debian's `apt` and from the mirror that it uses."""
    lines = [
        line
        for path in Path("/etc/apt/sources.list.d").glob("*.sources")
        for line in path.read_text().splitlines()
        if line.startswith("URIs:")
    ]
    if not (lines and shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("perf_analyzer needs a newer C library, and this is no Debian that could have one beside its own")
    files = folder.with_name("debian13.files")
    for each in ("lists/partial", "cache/archives/partial", "debs"):
        (files / each).mkdir(parents=True, exist_ok=True)
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (files / "sources.list").write_text(f"deb [signed-by={key}] {lines[0].split()[1]} trixie main\n")
    settings = {
        "Dir::Etc::sourcelist": files / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": files / "lists",
        "Dir::Cache": files / "cache",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in settings.items())]
    unpacked = folder.with_name(f"debian13.{os.getpid()}")
    for command in ([*apt, "update"], [*apt, "download", *DEBIAN]):
        done = subprocess.run(command, cwd=files / "debs", capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"Debian 13's libraries cannot be had: {done.stderr.strip().splitlines()[-1:]}")
    for package in (files / "debs").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, unpacked], check=True)
    unpacked.rename(folder)
