"""Backends: each runs one kind of model file behind the same contract. A runtime is imported only when asked for."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models import hints
from models.manifest import ACTIVATION_MAPS_NAME, FEATURES_NAME, Manifest
from server.engine.classes import Extras
from server.settings import Settings

ONNX_BACKENDS = ("onnx", "openvino")
"""Each runs the same file."""


class Outputs(NamedTuple):
    """The graph's outputs for a batch, by their names: those of OUTPUT_NAMES, and of EXTRA_NAMES what is wanted."""

    probabilities: NDArray[np.float32]
    """float32[N, k] of the most probable classes, best first"""
    indices: NDArray[np.int32]
    """int32[N, k]"""
    logits: NDArray[np.float32]
    """float32[N, num_classes], for those who average over crops or networks"""
    features: NDArray[np.float32] | None = None
    """float32[N, C]; None where nobody wants them"""
    activation_maps: NDArray[np.float32] | None = None
    """float32[N, K, h, w]; None where nobody wants them"""


class BackendMissingError(Exception):
    """A model's runtime is not installed; the message says which."""


class WrongBackendError(Exception):
    """A setting names another runtime than the one that a file is made for; the message says which."""


class Backend(Protocol):
    """One loaded model."""

    instances: int
    """Batches that it gains from running at one time."""
    on_gpu: bool
    """Whether it copies images to a GPU."""
    extras_apart: bool
    """Whether batches that want features or activation maps run in a graph, or program, of their own."""

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """Classify 1 <= N <= max_batch images, each uint8[H, W, 3] without gaps, wherever it lies; blocks.

        The images' memory is the caller's again on return. Features and activation maps are `wanted` only of a model
        that has them by its manifest; where none are, they cost nothing that can be avoided.

        Raises:
            DeviceLostError: no model on this device is usable any more in this process.
            Exception: whatever else the runtime reports; the model stays usable for later batches.
        """

    def run_beside(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """As `run`, for a batch beside others of this process: on the CPU it uses no more than its share of threads."""

    def close(self) -> None:
        """Give up what Python does not: memory of a GPU. Nothing runs, and nothing will."""


def extra_names(wanted: Extras) -> list[str]:
    """The outputs of EXTRA_NAMES that are wanted."""
    if not wanted:
        return []
    names = {Extras.FEATURES: FEATURES_NAME, Extras.HEATMAP: ACTIVATION_MAPS_NAME}
    return [name for extra, name in names.items() if extra in wanted]


def stack(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """uint8[N, H, W, 3] of `images`, for a runtime that wants one buffer; a lone image is not copied."""
    return images[0][np.newaxis] if len(images) == 1 else np.stack(images)


def load(manifest: Manifest, content: bytes, settings: Settings) -> Backend:
    """Load a model file's `content` with the backend that its manifest names, or the settings, for an ONNX file.

    Raises:
        BackendMissingError, WrongBackendError: as `runtime`.
        Exception: whatever the runtime reports of a file it cannot load.
    """
    module = runtime(manifest, settings)
    from server.engine.backends import two_graphs

    if not two_graphs.are_worth_it(manifest, content, settings):
        only: Backend = module.load(manifest, content, settings)
        return only
    plain: Backend = module.load(manifest, two_graphs.classes_alone(content), settings)
    # Few batches want the whole graph: not worth its weights once more for those that run beside others.
    whole = module.load(manifest, content, settings.model_copy(update={"instances": 1}))
    return two_graphs.TwoGraphs(plain, whole)


def questions(manifest: Manifest, backend: Backend) -> tuple[Extras, ...]:
    """What to want, in one batch each, so that every graph of a backend runs with all its outputs."""
    everything = Extras.FEATURES | Extras.HEATMAP if manifest.features else Extras.NONE
    return (everything, Extras.NONE) if everything and backend.extras_apart else (everything,)


def runtime(manifest: Manifest, settings: Settings) -> ModuleType:
    """The module of the backend that runs a model, with its runtime, which is imported if it never was.

    Raises:
        BackendMissingError: its runtime is not installed.
        WrongBackendError: the setting is not the backend that the file is bound to.
    """
    name = settings.backend if settings.backend and manifest.backend in ONNX_BACKENDS else manifest.backend
    if reason := why_not(manifest, name):
        raise WrongBackendError(reason)
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as missing:
        raise BackendMissingError(
            f"model {manifest.name} cannot be run: {hints.missing(str(missing.name))}, or serve the"
            " network's ONNX file with ONNX Runtime"
        ) from missing


def why_not(manifest: Manifest, name: str | None) -> str | None:
    """Why the backend `name` must not run a file; None: it may, or there is no `name`."""
    if not name or manifest.bound_to in (None, name):
        return None
    how = "in bfloat16" if manifest.precision == "bf16" else "as its activations are rounded"
    return (
        f"it is made for {manifest.bound_to}, which alone runs it {how}, and not for {name}:"
        f" leave out --backend {name}, or serve another file of this network"
    )


def page_locked(memory: NDArray[np.uint8]) -> AbstractContextManager[None]:
    """While open, a GPU reads images in `memory` directly; see `cuda.page_locked`."""
    from server import cuda

    return cuda.page_locked(memory)
