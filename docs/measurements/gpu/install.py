"""An environment with the packages of a machine, and beside them those of a bundle. Needs nothing but Python."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_DISTRIBUTIONS = """
from importlib.metadata import distributions
print(*(f"{one.name}=={one.version}" for one in distributions()), sep="\\n")
"""
_SITES = "import sys\nprint(*(path for path in sys.path if path.endswith('-packages')), sep='\\n')"


def environment(folder: Path) -> Path:
    """Make a virtual environment in `folder`, unless it exists, that sees all packages of this Python; its Python.

    --system-site-packages would not do: if this Python is that of a virtual environment, it shows other packages.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    site, *_ = _lines(python, _SITES)
    Path(site, "there.pth").write_text("\n".join(_lines(Path(sys.executable), _SITES)) + "\n")
    return python


def install(python: Path, wheels: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Install those wheels whose package is not there in their version: their names, and what cannot be installed.

    They hide the machine's packages and remove none. A bundle has no PyTorch, which therefore stays the machine's;
    onnxruntime-gpu hides an onnxruntime that is there.
    """
    there = distributions(python)
    missing = {}
    for wheel in wheels:
        name, version, *_ = wheel.name.split("-")
        if there.get(plain(name)) != version:
            missing[plain(name)] = wheel
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--disable-pip-version-check"]
    command += ["--no-index", "--no-deps", "--no-compile", "--quiet"]
    refused = []
    if missing and subprocess.run([*command, *missing.values()], check=False).returncode:  # noqa: S603
        for name, wheel in missing.items():  # all but those that pip refuses
            if subprocess.run([*command, wheel], check=False).returncode:  # noqa: S603
                refused.append(f"{name} cannot be installed")
    (site, *others) = map(Path, _lines(python, _SITES))
    for other in others:
        _link_libraries(other / "nvidia", site / "nvidia")
    return sorted(missing), refused


def distributions(python: Path) -> dict[str, str]:
    """Return the version of each package that a Python sees, by its name."""
    found: dict[str, str] = {}
    for name, _, version in (line.partition("==") for line in _lines(python, _DISTRIBUTIONS)):
        found.setdefault(plain(name), version)  # the first is the one that is imported
    return found


def plain(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _link_libraries(there: Path, here: Path) -> None:
    """Link CUDA's libraries to where packages look for them, as if all were installed in one place."""
    for library in there.glob("*/lib/*.so*"):
        link = here / library.relative_to(there)
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(library)


def _lines(python: Path, program: str) -> list[str]:
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.split()


def _run(*command: str) -> None:
    subprocess.run(command, check=True)  # noqa: S603
