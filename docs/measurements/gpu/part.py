"""Shared by all parts: sizes, paths, and the result, which is on disk after every step."""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.measurements.gpu.serving import PATIENCE_S, REHEARSAL_PATIENCE_S
from server import gpus

ROOT = Path(__file__).parents[3]
REAL_PHOTOS = 250


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    network: str
    deep: str
    photos: int
    checkpoints: int
    """of CIFAR networks"""
    cifar_images: int
    """for each of them"""
    kills: int
    """of the engine under load"""
    max_batch: int
    seconds: float
    """of each figure"""
    warm_up_s: float
    senders: int
    """processes of the load generator"""
    grid: tuple[tuple[int, tuple[int, ...]], ...]
    """HTTP workers, and the connections to try with them"""
    short_grid: tuple[tuple[int, tuple[int, ...]], ...]
    """the same for ONNX Runtime, and for decoding on the GPU"""
    cores: tuple[tuple[int, int], ...]
    """engines and HTTP workers without the GPU, the most telling first: the time may end before the last"""
    core_connections: int
    batches: tuple[int, ...]
    patience_s: float
    """for an engine to start"""


FULL = Sizes(
    network="resnet50",
    deep="resnet152",
    photos=REAL_PHOTOS,
    checkpoints=4,
    cifar_images=1000,
    kills=2,
    max_batch=128,
    seconds=3.0,
    warm_up_s=1.5,
    senders=4,
    grid=((8, (32, 128, 256, 512)), (12, (128, 512)), (4, (128, 512)), (2, (128,)), (1, (32, 128))),
    short_grid=((8, (32, 128, 512)), (12, (512,))),
    cores=((1, 12), (4, 12), (2, 6), (1, 2)),
    core_connections=64,
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    patience_s=PATIENCE_S,
)
SMALL = Sizes(
    network="cifar_resnet32",
    deep="cifar_resnet44",
    photos=8,
    checkpoints=1,
    cifar_images=20,
    kills=1,
    max_batch=4,
    seconds=1.0,
    warm_up_s=0.5,
    senders=2,
    grid=((1, (2, 4)), (2, (4,))),
    short_grid=((1, (2, 4)),),
    cores=((1, 2), (2, 1)),
    core_connections=4,
    batches=(1, 2),
    patience_s=REHEARSAL_PATIENCE_S,
)


class Result:
    """The measurements of a part so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: dict[str, Any] = {"checks": {}}

    def put(self, name: str, value: Any) -> None:
        """Set a value, or add a row to a list that has begun with one."""
        self._content[name] = value
        self._write()

    def add(self, name: str, row: Any) -> None:
        """Add a row to a table."""
        self._content.setdefault(name, []).append(row)
        print(f"{name}: {json.dumps(row)}", flush=True)
        self._write()

    def check(self, name: str, look: Callable[[], str]) -> None:
        """Do a check, which returns what it saw, or raises; later checks are done in any case."""
        started_s = time.monotonic()
        try:
            text = f"ok: {look()}"
        except Exception as error:  # of any kind: the error is the result
            traceback.print_exc()
            text = f"{type(error).__name__}: {str(error)[:2000]}"
        text = f"{text} ({time.monotonic() - started_s:.1f} s)"
        print(f"{name}: {text}", flush=True)
        self._content["checks"][name] = text
        self._write()

    def exit_code(self) -> int:
        """0: every check was ok."""
        return 0 if all(text.startswith("ok") for text in self._content["checks"].values()) else 1

    def _write(self) -> None:
        scratch = self._path.with_name(f".{self._path.name}")
        scratch.write_text(json.dumps(self._content))
        scratch.rename(self._path)


@dataclass(frozen=True, slots=True)
class Context:
    """The command line of a part, and the machine."""

    variant: str
    """The one to run, of a part that has several."""
    folder: Path
    result: Result
    rehearse: bool
    on_gpu: bool
    sizes: Sizes

    @property
    def repository(self) -> Path:
        """The model repository, which the part `build` fills."""
        return self.folder / "model_repository"

    def photos(self) -> list[Path]:
        """Return the sample's photos in the order of the classes, as many as are here and are wanted."""
        found = sorted(path for shared in self._shared() for path in shared.glob("data/imagenet-sample/*"))
        return found[: self.sizes.photos] or sorted((ROOT / "export" / "photos").glob("*.jpg"))

    def cifar(self) -> dict[str, Path]:
        """Return trained checkpoints by network."""
        found = [path for shared in self._shared() for path in sorted(shared.glob("weights/cifar10/resnet*.th"))]
        return {f"cifar_{path.name.partition('-')[0]}": path for path in found[: self.sizes.checkpoints]}

    def cifar_images(self) -> list[Path]:
        """Return images from all classes."""
        found = sorted(path for shared in self._shared() for path in shared.glob("data/cifar10-test/*/*"))
        return found[:: max(1, len(found) // self.sizes.cifar_images)]

    def _shared(self) -> list[Path]:
        """Return the folder of data, if there is one: a bundle's, or that beside the project."""
        places = (self.folder / "bundle" / "shared", ROOT.parent / "shared", ROOT / "shared")
        return [place for place in places if place.is_dir()][:1]


def context(variants: tuple[str, ...]) -> Context:
    """Read the command line; the default variant is the first. Without a GPU, only a rehearsal continues."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", nargs="?", choices=variants, default=variants[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    with gpus.management() as library:
        on_gpu = library is not None and library.nvmlDeviceGetCount() > 0
    if not on_gpu and not options.rehearse:
        print("there is no NVIDIA GPU here: --rehearse runs the parts on the CPU", file=sys.stderr)
        sys.exit(1)
    os.chdir(ROOT)
    sizes = SMALL if options.rehearse else FULL
    return Context(options.variant, options.folder, Result(options.rows), options.rehearse, on_gpu, sizes)
