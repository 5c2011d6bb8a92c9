"""`python -m tests.server.gated`: the server, but a batch does not run while the test holds one of its images.

The test holds them by locking files in the folder GATES: one for each class of `tests.tiny`, one for each model by its
name, and one for reading the repository. Warm-up images are black, which is class 0. Batches are as large as possible:
the scheduler is kept from learning, on a busy machine, that large ones are slow.
Child processes import this module as well, so it imports no more than the server itself.
"""

import fcntl
import os
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from models.manifest import Manifest
from server import __main__, repository
from server.engine import backends
from server.engine.backends import Backend, Outputs
from server.engine.classes import Extras
from server.engine.scheduler import Scheduler
from server.repository import Catalogue
from server.settings import Settings

GATES = "GATES"
"""The environment variable that names the folder."""
REPOSITORY = "repository"
"""The gate for reading the repository: while a test holds it, reading hangs."""


class _Gated:
    """A backend in front of which batches wait."""

    def __init__(self, backend: Backend, gates: Path, name: str) -> None:
        self._backend = backend
        self._gates = gates
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        _pass(self._gates / self._name)
        for image in images:
            _pass(self._gates / str(image[0, 0, 0]))
        return self._backend.run(images, wanted)

    run_beside = run


def _pass(gate: Path) -> None:
    try:
        with gate.open() as held:
            fcntl.flock(held, fcntl.LOCK_SH)
    except FileNotFoundError:
        pass


_load, _signature, _scan = backends.load, repository.signature, repository.scan


def _load_gated(manifest: Manifest, content: bytes, settings: Settings) -> Backend:
    return cast("Backend", _Gated(_load(manifest, content, settings), Path(os.environ[GATES]), manifest.name))


def _signature_gated(folder: Path) -> Any:
    _pass(Path(os.environ[GATES]) / REPOSITORY)
    return _signature(folder)


def _scan_gated(*arguments: Any, **options: Any) -> Catalogue:
    _pass(Path(os.environ[GATES]) / REPOSITORY)
    return _scan(*arguments, **options)


def _observe_nothing(_: Scheduler[Any], model: Hashable, size: int, seconds: float) -> None:
    pass


if GATES in os.environ:  # not if pytest only imports this
    backends.load = _load_gated
    Scheduler.observe = _observe_nothing  # type: ignore[method-assign, assignment]
    repository.signature, repository.scan = _signature_gated, _scan_gated

if __name__ == "__main__":
    sys.exit(__main__.main())
