"""Resources that outlive any child process: the ports, the shared memory of the slots, and the run's folder."""

import contextlib
import math
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

from models import hints
from server import cpus, gpus, keys, metrics, run_folder
from server.child import keep_socket_in
from server.errors import StartupError
from server.images import jpeg
from server.listeners import Listeners
from server.metrics import Metrics
from server.placement import Machine, Place, place
from server.protection import Protection
from server.ready_file import ReadyFile
from server.repository import Catalogue
from server.run_folder import RunFolder
from server.settings import GPU_PROVIDERS, Settings
from server.slots import Slots, more_room
from server.usage import Usage

USUAL_BYTES = 224 * 224 * 3
"""Bytes of a crop, assumed if no model can be read at the start."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Held from before the first child is started until the last has ended."""

    settings: Settings
    """With the host and gRPC port that are really in use."""
    protection: Protection
    listeners: Listeners
    places: tuple[Place, ...]
    """Of the engines."""
    folder: Path
    """The run's folder."""
    usage: Usage | None
    """What each API key has used of its limits; None without API keys."""
    metrics: Metrics
    slots: Slots
    ready_file: ReadyFile | None

    def keep_usage(self) -> None:
        """Make the usage table fit the current API keys."""
        if self.usage:
            self.usage.keep([key.sha256 for key in self.protection.keys or ()])

    def forget_usage(self, worker: str) -> None:
        """Zero the requests under way of an HTTP worker that has ended."""
        if self.usage:
            self.usage.clear(worker_names(self.settings).index(worker))

    def tell_ready(self, processes: Mapping[str, int]) -> None:
        """Have the ready file written, if the settings ask for one."""
        if self.ready_file:
            self.ready_file.write(self.listeners.url, self.listeners.grpc_address, processes)

    @classmethod
    @contextlib.contextmanager
    def hold(cls, settings: Settings, catalogue: Catalogue) -> Generator[Self]:
        """Hold all resources until the block ends.

        Raises:
            StartupError: one cannot be had, or the settings need a package that is not installed.
        """
        protection = Protection(settings)
        _check_installed(settings)
        with ExitStack() as held:
            listeners = held.enter_context(Listeners.open(settings))
            settings = settings.model_copy(update={"host": listeners.host, "grpc_port": listeners.grpc_port})
            places = places_of(settings, catalogue)
            folder = _run_folder(held)
            with _room_for("the use of API keys", folder):
                usage = keys.usage_table(folder, settings.http_workers) if settings.api_keys else None
            keep_socket_in(folder)
            with _room_for("metrics", folder):
                processes = ["supervisor", *(place.name for place in places), *worker_names(settings)]
                metrics.use_directory(folder, processes, len(catalogue.entries))
            if run_folder.is_too_long():
                detail = "is too long a path for a socket in it; set it to a short one, such as /tmp"
                raise StartupError(f"TMPDIR {tempfile.gettempdir()} {detail}")
            slots = _slots(settings, catalogue, len(places))
            ready_file = _ready_file(held, settings)
            measured = Metrics("supervisor")
            resources = cls(settings, protection, listeners, places, folder, usage, measured, slots, ready_file)
            resources.keep_usage()
            yield resources


def worker_names(settings: Settings) -> list[str]:
    """Process names of the HTTP workers, by number."""
    return [f"http-{number}" for number in range(settings.http_workers)]


def places_of(settings: Settings, catalogue: Catalogue) -> tuple[Place, ...]:
    """The GPU or CPUs that each engine owns."""
    backends = {model.manifest.backend for model in catalogue.models.values()}
    on_gpus = not GPU_PROVIDERS.isdisjoint(settings.providers) or "tensorrt" in backends
    on_gpus = on_gpus or ("torch" in backends and _torch_has_cuda())
    found: tuple[str, ...] = ()
    if on_gpus:
        with gpus.management() as library:
            found = gpus.visible(library, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return place(settings.engines, Machine(cpus.nodes(), cpus.available_cpus(), found), on_gpus=on_gpus)


def _torch_has_cuda() -> bool:
    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def _check_installed(settings: Settings) -> None:
    if settings.otlp_endpoint:
        from server import tracing  # imported here, as it loads OpenTelemetry

        if not tracing.is_installed():
            raise StartupError(f"tracing is not installed: {hints.install('tracing')}, or leave --otlp-endpoint out")
    if refused := jpeg.why_not(settings):
        raise StartupError(refused)


def _run_folder(held: ExitStack) -> Path:
    try:
        folder = RunFolder()
    except OSError as error:
        raise StartupError(f"cannot make a folder for sockets and metrics: {error}; set TMPDIR") from error
    held.callback(folder.remove)
    return folder.path


@contextlib.contextmanager
def _room_for(what: str, folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise StartupError(f"no room for {what} in {folder.parent}: {error.strerror}; set TMPDIR") from error


def _slots(settings: Settings, catalogue: Catalogue, engines: int) -> Slots:
    largest = max((math.prod(model.manifest.input_shape) for model in catalogue.models.values()), default=USUAL_BYTES)
    try:
        return Slots(settings.slots, largest, settings.http_workers, engines)
    except OSError as error:
        detail = f"cannot allocate shared memory for {settings.queue_size} images: {error.strerror}"
        raise StartupError(f"{detail}; lower --queue-size, or {more_room()}") from error


def _ready_file(held: ExitStack, settings: Settings) -> ReadyFile | None:
    if not settings.ready_file:
        return None
    try:
        ready_file = ReadyFile(settings.ready_file)
    except OSError as error:
        raise StartupError(f"--ready-file {settings.ready_file}: {error.strerror}") from error
    held.callback(ready_file.remove)
    return ready_file
