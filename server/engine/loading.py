"""From a model's folder to a backend that is warm."""

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models import manifest
from models.manifest import Manifest, ManifestError, UnreadableError
from server import cpus
from server.aside import fulfil
from server.engine import backends
from server.engine.backends import Backend, Outputs
from server.engine.classes import Extras
from server.engine.scheduler import Limits, buckets
from server.repository import SETTINGS_FILE, Model
from server.settings import Settings

log = logging.getLogger(__name__)


class UnsuitableError(Exception):
    """A file answers otherwise on this machine than where it was proven."""


class Warm(NamedTuple):
    """What `Engine.add_model` needs of a model."""

    backend: Backend
    limits: Limits
    latency_s: Mapping[int, float]
    """of a warm batch, by its size"""


def load(
    repository: Path,
    model: Model,
    settings: Settings,
    progress: Callable[[], None] = lambda: None,
    cpu_flags: Callable[[], Set[str]] = cpus.flags,
) -> Warm:
    """Verify the digest, load, and run batches of every bucket, so that no request pays for a first time.

    Raises:
        ManifestError: the file is not the manifest's, in its digest or in what it answers, or its settings exclude
            each other.
        UnreadableError: the file cannot be read, or not in half the time after which a process counts as hanging.
        UnsuitableError: it was quantised for another kind of CPU.
        Exception: whatever the runtime reports.
    """
    started_s = time.monotonic()
    found, settings = model.manifest, settings.of(model.settings)
    folder = repository / found.name / str(found.version)
    if settings.max_wait_ms >= settings.timeout_ms:
        waits = f"max_wait_ms {settings.max_wait_ms:g} is not below timeout_ms {settings.timeout_ms:g}"
        raise ManifestError(f"{folder.parent / SETTINGS_FILE}: {waits}: a lone request would never be answered")
    progress()
    backend = backends.load(found, _read(folder, found, settings.stall_timeout_ms / 2e3), settings)
    latency_s: dict[int, float] = {}
    try:
        if not backend.on_gpu and (reason := cpus.why_not(found, cpu_flags())):
            raise UnsuitableError(reason)
        ways = (backend.run, backend.run_beside) if backend.instances > 1 else (backend.run,)
        for size in buckets(settings.max_batch):
            progress()
            images = [np.zeros(found.input_shape, np.uint8)] * size
            for wanted, run in product(backends.questions(found, backend), ways):
                _check(run(images, wanted), size, wanted, found, folder / found.file.name)
            warm_s = time.monotonic()
            backend.run(images)
            latency_s[size] = time.monotonic() - warm_s
    except Exception:
        backend.close()
        raise
    give_memory_back()
    log.info("%s is warm after %.1f s", model.key, time.monotonic() - started_s)
    limits = Limits(settings.max_batch, settings.max_wait_ms / 1e3, settings.queue_size)
    return Warm(backend, limits, latency_s)


_reading: dict[tuple[Path, str], Future[bytes]] = {}
"""Reads of model files that nobody has taken the contents of: a volume that hangs keeps them from ending."""


def _read(folder: Path, found: Manifest, patience_s: float) -> bytes:
    """Read the model file in a thread, so that a volume that hangs does not hold up the other models.

    Raises:
        ManifestError: as `manifest.read_model_file`.
        UnreadableError: the same, or it was not read within `patience_s`; later calls do not wait for that read again.
    """
    path = folder / found.file.name
    key = path, found.file.sha256
    reading, wait_s = _reading.get(key), 0.0
    if reading is None:
        reading, wait_s = Future(), patience_s
        read = partial(manifest.read_model_file, folder, found)
        threading.Thread(target=fulfil, args=(reading, read), name="reader", daemon=True).start()
        _reading[key] = reading
    if not wait([reading], wait_s).done:
        raise UnreadableError(f"{path}: it was not read within {patience_s:g} s: its volume hangs, or is very slow")
    _reading.pop(key, None)
    return reading.result()


def _check(outputs: Outputs, size: int, wanted: Extras, found: Manifest, path: Path) -> None:
    if (outputs.indices.shape, outputs.logits.shape) != ((size, found.top_k), (size, found.num_classes)):
        raise ManifestError(f"{path}: it does not rank {found.num_classes} classes as it should")
    shapes = [rows is not None and rows.shape for rows in (outputs.features, outputs.activation_maps)]
    maps = (size, found.mapped_classes, *(found.activation_maps or ()))
    if wanted and shapes != [(size, found.features), maps]:
        raise ManifestError(f"{path}: its features and activation maps are not as its manifest says")


def give_memory_back() -> None:
    """Have the C library return to the system what is free, where it can.

    Loading a model takes several times its file, which the library keeps: 350 MB of 820 for ResNet-152.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
