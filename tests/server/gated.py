"""`python -m tests.server.gated`: the server, but a batch does not run while the test holds one of its images.

The test says which by a locked file for each class of `tests.tiny`, below GATES. Images of warm-ups are black: class 0.
Children import this module as well, so it imports no more than the server itself.
"""

import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from models.manifest import Manifest
from server import __main__
from server.engine import backends
from server.engine.backends import Backend, Outputs
from server.settings import Settings

GATES = "GATES"
"""The variable that names the folder."""


class _Gated:
    """A backend in front of which batches wait."""

    def __init__(self, backend: Backend, gates: Path) -> None:
        self._backend = backend
        self._gates = gates

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        for image in images:
            try:
                with (self._gates / str(image[0, 0, 0])).open() as gate:
                    fcntl.flock(gate, fcntl.LOCK_SH)
            except FileNotFoundError:
                pass
        return self._backend.run(images)


_load = backends.load


def _load_gated(manifest: Manifest, content: bytes, settings: Settings) -> Backend:
    return cast("Backend", _Gated(_load(manifest, content, settings), Path(os.environ[GATES])))


if GATES in os.environ:  # not where pytest only looks at this
    backends.load = _load_gated

if __name__ == "__main__":
    sys.exit(__main__.main())
