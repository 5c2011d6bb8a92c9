"""An environment that has what a machine has already, and beside it what a bundle brings. Needs nothing but Python."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_DISTRIBUTIONS = "from importlib.metadata import distributions as d\nprint(*(one.name for one in d()), sep='\\n')"
_SITES = "import sys\nprint(*(path for path in sys.path if path.endswith('-packages')), sep='\\n')"


def environment(folder: Path) -> Path:
    """Make a virtual environment in `folder`, if it is not there, that sees all packages of this Python; its Python.

    Not by --system-site-packages: where this Python is itself of a virtual environment, that would not be its packages.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    site, *_ = _lines(python, _SITES)
    Path(site, "there.pth").write_text("\n".join(_lines(Path(sys.executable), _SITES)) + "\n")
    return python


def install(python: Path, wheels: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Install those wheels whose package is not there in any version: their names, and what cannot be installed.

    What is there stays, whatever its version: PyTorch above all. onnxruntime-gpu hides an onnxruntime that is there.
    """
    there = distributions(python)
    fresh = {plain(wheel.name.partition("-")[0]): wheel for wheel in wheels}
    missing = {name: wheel for name, wheel in fresh.items() if name not in there}
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


def distributions(python: Path) -> set[str]:
    """Names of all packages that a Python sees."""
    return set(map(plain, _lines(python, _DISTRIBUTIONS)))


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _link_libraries(there: Path, here: Path) -> None:
    """Have CUDA's libraries beside the packages that look for them there, as where all are installed in one place."""
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
