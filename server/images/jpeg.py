"""Chooses the JPEG decoder: Pillow, or another that the settings name."""

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from models import hints
from models.manifest import Interpolation
from server import gpus
from server.cpus import available_cpus
from server.images.preprocess import Window
from server.settings import Settings

_MODULES = ("nvidia.nvimgcodec", "cuda.bindings.runtime", "pynvml", "onnx")
_CUDA_PROVIDER = "libonnxruntime_providers_cuda.so"

log = logging.getLogger(__name__)


class JpegDecoder(Protocol):
    """A decoder that can take Pillow's place for some photos."""

    def crops(
        self, data: bytes, image: JpegImageFile, windows: Sequence[Window], interpolation: Interpolation
    ) -> list[NDArray[np.uint8]] | None:
        """Decode the `windows` of a photo, uint8[height, width, 3] each, as stored; None: leave it to Pillow. Blocks.

        `image` is the same photo, opened but not decoded.
        """


def why_not(settings: Settings) -> str | None:
    """Why the configured decoder cannot work here, and what to do; None: no reason was found."""
    if settings.decoder == "pillow":
        return None
    if missing := [module for module in _MODULES if _find(module) is None]:
        how = hints.install("nvimagecodec")
        return f"{' and '.join(missing)} cannot be imported: {how}, or leave --decoder out"
    if settings.decoder == "nvimagecodec-cpu":
        return None
    with gpus.management() as library:
        if library is None or not library.nvmlDeviceGetCount():
            return "there is no NVIDIA GPU to decode on, or no driver: leave --decoder out"
    runtime = _find("onnxruntime")
    if runtime is None or not (Path(runtime).parent / "capi" / _CUDA_PROVIDER).exists():
        return "decoding on the GPU needs onnxruntime-gpu (docs/guides/providers.md), or leave --decoder out"
    return None


def _find(module: str) -> str | None:
    """Path that a module would be imported from; does not import it."""
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # its parent package is missing
        return None
    return None if found is None else found.origin


def start(settings: Settings, count: Callable[[str], None]) -> JpegDecoder | None:
    """Start the configured decoder; None: Pillow is configured, or the decoder cannot start, which is logged.

    `count` is called with "done" or "refused" for each photo given to the decoder.
    """
    if settings.decoder == "pillow":
        return None
    threads = max(1, available_cpus() // settings.http_workers)
    try:
        from server.images.nvimagecodec import NvImageCodec

        return NvImageCodec("cuda" if settings.decoder == "nvimagecodec" else "cpu", threads, count)
    except Exception:  # a server that decodes slowly is better than none
        log.exception("the decoder cannot start: Pillow decodes all photos")
        return None
