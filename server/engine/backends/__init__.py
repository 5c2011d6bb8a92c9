"""Backends: each runs one kind of model file behind the same contract. A runtime is imported only when asked for."""

from importlib import import_module
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.manifest import Manifest
from server.settings import Settings


class TopK(NamedTuple):
    """Per image the classes of the highest probability, best first."""

    probabilities: NDArray[np.float32]
    """float32[N, k]"""
    indices: NDArray[np.int32]
    """int32[N, k]"""


class DeviceLostError(Exception):
    """The device answers every call of this process with an error: only another process can use it again."""


class Backend(Protocol):
    """One loaded model."""

    def run(self, images: NDArray[np.uint8]) -> TopK:
        """Classify uint8[N, H, W, 3], 1 <= N <= max_batch; blocks. The buffer is the caller's again on return.

        Raises:
            DeviceLostError: no model on this device is usable any more in this process.
            Exception: whatever else the runtime reports; the model stays usable for later batches.
        """


def load(manifest: Manifest, content: bytes, settings: Settings) -> Backend:
    """Load a model file's `content` with the backend that its manifest names.

    Raises:
        Exception: whatever the runtime reports of a file it cannot load.
    """
    backend: Backend = import_module(f"{__name__}.{manifest.backend}").load(manifest, content, settings)
    return backend
