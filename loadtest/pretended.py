"""`python -m loadtest.pretended`: the server on simulated devices, which take a fixed time for a batch and no CPU.

`loadtest/devices.py` uses it, and `engine_loop` its backend, to measure what the rest of the server can carry whatever
the device. PRETENDED_S in the environment is the seconds that a batch takes and those that each of its images adds,
such as "0.02,0.0025". Answers are made up. Child processes import this module as well.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from models.manifest import Manifest
from server import __main__
from server.engine import backends
from server.engine.backends import Backend, Outputs
from server.engine.classes import Extras
from server.settings import Settings

SECONDS = "PRETENDED_S"
"""The environment variable."""


class Pretended:
    """A simulated device that runs one batch at a time."""

    instances = 1
    on_gpu = False
    extras_apart = False

    def __init__(self, manifest: Manifest, max_batch: int, batch_s: float, image_s: float) -> None:
        self._manifest = manifest
        self._batch_s = batch_s
        self._image_s = image_s
        self._answers = (  # prepared here, so that they cost nothing later
            np.full((max_batch, manifest.top_k), 1 / manifest.num_classes, np.float32),
            np.tile(np.arange(manifest.top_k, dtype=np.int32), (max_batch, 1)),
            np.zeros((max_batch, manifest.num_classes), np.float32),
        )

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """See `Backend.run`."""
        count, found = len(images), self._manifest
        time.sleep(self._batch_s + count * self._image_s)
        probabilities, indices, logits = self._answers
        return Outputs(
            probabilities[:count],
            indices[:count],
            logits[:count],
            np.zeros((count, found.features or 0), np.float32) if Extras.FEATURES in wanted else None,
            np.zeros((count, found.mapped_classes, *(found.activation_maps or ())), np.float32)
            if Extras.HEATMAP in wanted
            else None,
        )

    run_beside = run

    def close(self) -> None:
        """See `Backend.close`."""


def _load(manifest: Manifest, content: bytes, settings: Settings) -> Backend:  # noqa: ARG001 as `backends.load` has it
    batch_s, image_s = map(float, os.environ[SECONDS].split(","))
    return cast("Backend", Pretended(manifest, settings.max_batch, batch_s, image_s))


if SECONDS in os.environ:  # not if it is only imported
    backends.load = _load

if __name__ == "__main__":
    sys.exit(__main__.main())
