"""An engine process: connects the engine core to the other processes by sockets, slots and a pipe."""

import gc
import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, assert_never

import numpy as np
from numpy.typing import NDArray

from models.manifest import ManifestError
from server import logs, metrics, portable
from server.control import HEARTBEAT_S, EngineReady, FromEngine, Heartbeat, Load, Loaded, ToEngine, Unload
from server.engine import backends, life
from server.engine.channel import Channel
from server.engine.classes import Extras
from server.engine.connections import Connections
from server.engine.core import Engine, Outcome
from server.engine.loading import Warm, give_memory_back, load
from server.engine.memory import Meter
from server.engine.messages import Answer, Cancel, Dropped, Failure, Reply, Submit, decode_request
from server.engine.scheduler import Job
from server.errors import Code, DeviceLostError, ServiceError
from server.fitting import Measured
from server.placement import Place
from server.refusals import Refusal
from server.repository import Model
from server.settings import Settings
from server.slots import Slots

log = logging.getLogger(__name__)


class _Served(NamedTuple):
    """A loaded model."""

    labels: metrics.Labels
    pixels: NDArray[np.uint8]
    """uint8[slots, H, W, 3]: the slots in the shape of its images"""


class _Crop(NamedTuple):
    """A job's payload: the HTTP worker that owns it, its pixels, and what it asks for."""

    owner: Channel
    id: int
    slot: int
    pixels: NDArray[np.uint8]
    model: metrics.Labels
    top_k: int | None
    include: Extras


def main(
    place: Place,
    settings: Settings,
    folder: Path,
    models: Sequence[Model],
    slots: Slots,
    address: str,
    control: Connection,
) -> None:
    """Load the models, then serve jobs at `address` until the supervisor closes its end of the pipe."""
    logs.configure(settings.log_level)
    settings = _settled(place, settings)
    life.show()
    with suppress(BrokenPipeError):  # the supervisor is gone, so this process ends too
        process = _Process(place, settings, folder, slots, address, control)
        process.serve(EngineReady(address, *process.load_all(models)))


def _settled(place: Place, settings: Settings) -> Settings:
    """Bind this process to its place, before it has threads or a runtime; returns the settings for that place."""
    if place.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu  # runtimes then see only this GPU, as number 0
    if place.cpus:
        try:
            os.sched_setaffinity(0, place.cpus)
        except OSError as error:  # these CPUs were taken away after the server started
            log.warning("%s goes without CPUs of its own: %s", place, error.strerror)
    return place.settings(settings)


class _Tally:
    """Counts the batches of this process, for the metrics."""

    def __init__(self, place: Place) -> None:
        self._metrics = metrics.Metrics(place.name)
        self._engine = place.name, place.device
        self._batches = self._images = 0  # since the last `show`
        self._busy_s = 0.0  # in those batches

    def started(self, jobs: Sequence[Job[_Crop]]) -> None:
        """Count a batch that starts."""
        now_s = time.monotonic()
        labels = jobs[0].payload.model
        self._metrics.batch_size.labels(*labels).add(len(jobs))
        self._metrics.queue.labels(*labels).add_all([now_s - job.arrived_s for job in jobs])
        self._batches += 1
        self._images += len(jobs)

    def ended(self, jobs: Sequence[Job[_Crop]], seconds: float | None) -> None:
        """Count a batch that ended after `seconds`; None: it failed."""
        if seconds is not None:
            self._metrics.inference.labels(*jobs[0].payload.model).add(seconds, len(jobs))
            self._busy_s += seconds

    def show(self, waiting: Mapping[metrics.Labels, int]) -> None:
        """Publish the counts, and how many images wait for each model."""
        self._metrics.engine_batches.labels(*self._engine).inc(self._batches)
        self._metrics.engine_images.labels(*self._engine).inc(self._images)
        self._metrics.engine_busy.labels(*self._engine).inc(self._busy_s)
        self._batches, self._images, self._busy_s = 0, 0, 0.0
        for labels, length in waiting.items():
            self._metrics.queue_length.labels(*labels).set(length)


class _Loader:
    """Loads models: at startup in the caller's thread, later in a thread of its own."""

    def __init__(
        self, settings: Settings, folder: Path, slot_bytes: int, wake: Callable[[], None], *, gpu: bool
    ) -> None:
        """`wake` is called from that thread once a model is loaded or has failed to load."""
        self._settings = settings
        self._folder = folder
        self._slot_bytes = slot_bytes
        self._wake = wake
        self._thread = _thread()
        self._loading: dict[Future[tuple[Warm, Measured]], Model] = {}
        self._meter = Meter(gpu=gpu)

    def load(self, model: Model, progress: Callable[[], None] = lambda: None) -> tuple[Warm, Measured]:
        """Load a model, and measure the time and memory that takes; blocks.

        Raises:
            ManifestError: the file is not the manifest's, or its images are too large for the slots.
            Exception: whatever the runtime reports.
        """
        found = model.manifest
        if math.prod(found.input_shape) > self._slot_bytes:
            raise ManifestError(
                f"its crop of {found.preprocessing.crop_text} is larger than any at the start: restart the server"
            )
        with self._meter.apart():
            backends.runtime(found, self._settings)
        started_s, before_bytes = time.monotonic(), self._meter.taken_bytes()
        warm = load(self._folder, model, self._settings, progress)
        total_bytes = self._meter.taken_bytes()
        return warm, Measured(time.monotonic() - started_s, max(0, total_bytes - before_bytes), total_bytes)

    def begin(self, model: Model) -> None:
        """Start to load a model, in a new thread if the one before has not ended: the supervisor has given that up."""
        if self._loading:
            self._thread = _thread()
        loading = self._thread.submit(self.load, model)
        self._loading[loading] = model
        loading.add_done_callback(lambda _: self._wake())

    def ended(self) -> list[tuple[Model, Future[tuple[Warm, Measured]]]]:
        """The loads that have ended since the last call."""
        return [(self._loading.pop(loading), loading) for loading in list(self._loading) if loading.done()]


class _Process:
    """One thread reads requests, steps the engine and sends the outcomes; another loads models."""

    def __init__(
        self, place: Place, settings: Settings, folder: Path, slots: Slots, address: str, control: Connection
    ) -> None:
        self._models: dict[str, _Served] = {}
        self._slots = slots
        self._control = control
        self._stall_s = settings.stall_timeout_ms / 1e3
        self._tally = _Tally(place)
        self._bell = portable.Bell()
        self._wake = self._bell.fileno()
        self._engine: Engine[_Crop] = Engine(
            wake=self._bell.ring,
            on_start=self._started,
            on_end=self._ended,
        )
        self._loader = _Loader(settings, folder, slots.slot_bytes, self._bell.ring, gpu=place.on_gpu)
        self._held = ExitStack()
        self._page_locked = False
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen()
        self._workers = Connections(listener, (self._wake, control.fileno()))

    def load_all(self, models: Sequence[Model]) -> tuple[dict[str, Refusal], dict[str, Measured]]:
        """Load models; returns, by id, why some were refused, and what the others take."""
        refused: dict[str, Refusal] = {}
        found: dict[str, Measured] = {}
        for model in models:
            try:
                warm, measured = self._loader.load(model, lambda: self._tell(Heartbeat()))
                self.add(model, warm)
                found[model.id] = measured
            except (DeviceLostError, BrokenPipeError):
                raise  # this process cannot serve any model
            except Exception as error:  # whatever is wrong with one model must not take the others down
                refused[model.id] = _refusal(model, error)
        gc.freeze()  # these objects stay for good: the collector need not scan them
        return refused, found

    def add(self, model: Model, warm: Warm) -> None:
        """Accept jobs for a model."""
        if warm.backend.on_gpu and not self._page_locked:
            self._page_locked = True
            self._held.enter_context(backends.page_locked(self._slots.memory))
        labels = model.manifest.name, str(model.manifest.version)
        pixels = self._slots.all_pixels(model.manifest.input_shape)
        self._models[model.id] = _Served(labels, pixels)
        self._engine.add_model(model.id, warm.backend, warm.limits, latency_s=warm.latency_s)

    def serve(self, ready: EngineReady) -> None:
        """Report that the engine is ready, then run until the supervisor closes its end of the pipe."""
        with self._held:
            self._turn(ready)

    def _turn(self, ready: EngineReady) -> None:
        self._tell(ready)
        heartbeat_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if now_s >= heartbeat_s and now_s - (self._engine.oldest_start_s() or now_s) < self._stall_s:
                self._tell(Heartbeat())
                heartbeat_s = now_s + HEARTBEAT_S
                self._tally.show(self._waiting())
            due_s = min(self._engine.next_event_s() or math.inf, now_s + HEARTBEAT_S)
            replies: list[tuple[Channel, Reply]] = []
            for source, events in self._workers.wait(max(0.0, due_s - now_s), busy=self._engine.busy):
                if source == self._wake:
                    self._bell.silence()
                    self._finish_loading()
                elif source == self._control.fileno():
                    try:
                        replies += map(_reply, self._obey(self._control.recv()))
                    except (EOFError, OSError):
                        return  # the supervisor stopped this engine, or is gone itself
                elif worker := self._workers.ready(source, events):
                    replies += self._receive(worker)
            replies += map(_reply, self._engine.step())
            self._workers.send(replies)

    def _tell(self, message: FromEngine) -> None:
        self._control.send(message)

    def _waiting(self) -> Mapping[metrics.Labels, int]:
        lengths: Counter[metrics.Labels] = Counter()
        for model_id, served in self._models.items():
            lengths[served.labels] += self._engine.queue_length(model_id)
        return lengths

    def _obey(self, message: ToEngine) -> list[Outcome[_Crop]]:
        """Carry out the supervisor's message; returns the outcomes of jobs that waited for an unloaded model."""
        match message:
            case Load(model):
                self._loader.begin(model)
            case Unload(model_id):
                if gone := self._models.pop(model_id, None):
                    self._tally.show({gone.labels: 0})
                    outcomes = self._engine.remove_model(model_id)
                    gc.collect()
                    give_memory_back()
                    return outcomes
            case _:
                assert_never(message)
        return []

    def _finish_loading(self) -> None:
        for model, loading in self._loader.ended():
            try:
                warm, measured = loading.result()
                self.add(model, warm)
            except DeviceLostError:
                raise
            except Exception as error:  # as in `load_all`
                self._tell(Loaded(model.id, _refusal(model, error), None))
            else:
                self._tell(Loaded(model.id, None, measured))

    def _receive(self, worker: Channel) -> list[tuple[Channel, Reply]]:
        """Take all requests that have arrived; returns the replies to those that end at once."""
        try:
            contents = worker.receive()
        except EOFError:
            self._workers.close(worker)
            self._engine.cancel_where(lambda job: job.payload.owner is worker)  # its successor does not know them
            return []
        replies: list[tuple[Channel, Reply]] = []
        for content in contents:
            request = decode_request(content)
            if isinstance(request, Cancel):
                if self._engine.cancel((worker, request.id)):
                    replies.append((worker, Dropped(request.id)))
                continue
            try:
                self._submit(worker, request)
            except ServiceError as error:
                replies.append((worker, Failure(request.id, error.code, error.detail)))
        return replies

    def _submit(self, owner: Channel, request: Submit) -> None:
        served = self._models.get(request.model)
        if served is None:
            raise ServiceError(Code.ENGINE_UNAVAILABLE, "the model is not loaded; try again later")
        pixels = served.pixels[request.slot]
        include = Extras(request.include) if request.include else Extras.NONE
        crop = _Crop(owner, request.id, request.slot, pixels, served.labels, request.top_k, include)
        job = Job(
            (owner, request.id), request.arrived_s, request.deadline_s, crop, request.quarantined, request.priority
        )
        self._engine.submit(request.model, job)

    def _started(self, jobs: Sequence[Job[_Crop]]) -> None:
        self._slots.running[[job.payload.slot for job in jobs]] = True
        self._tally.started(jobs)

    def _ended(self, jobs: Sequence[Job[_Crop]], seconds: float | None) -> None:
        self._slots.running[[job.payload.slot for job in jobs]] = False
        self._tally.ended(jobs, seconds)


def _reply(outcome: Outcome[_Crop]) -> tuple[Channel, Reply]:
    crop, result = outcome.job.payload, outcome.result
    if isinstance(result, ServiceError):
        return crop.owner, Failure(crop.id, result.code, result.detail)
    return crop.owner, Answer(
        crop.id,
        result.probabilities.tobytes(),
        result.indices.tobytes(),
        result.logits.tobytes(),
        result.queue_s,
        result.inference_s,
        result.batch_size,
        result.features.tobytes(),
        result.activation_maps.tobytes(),
    )


def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="loader")


def _refusal(model: Model, error: Exception) -> Refusal:
    refusal = Refusal.of(error)
    later = " for now" if refusal.is_tried_again else ""
    log.warning("%s is refused%s: %s", model.key, later, refusal.reason)
    return refusal
