"""The engine core inside a Ray replica: the counterpart of `RemoteEngine` within one process.

One event loop owns everything here. Batches run in the engine's threads and decoders in those of a pool; both hand
their results back by `call_soon_threadsafe`.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.manifest import CropCount, ManifestError
from server import repository
from server.engine import loading
from server.engine.admission import Admission
from server.engine.classes import Classes, Extras, Follow
from server.engine.core import Engine, Outcome
from server.engine.decoding import Decoders, Image
from server.engine.scheduler import Job, Priority
from server.errors import Code, DeviceLostError, ServiceError
from server.images import jpeg
from server.images.decode import decode
from server.metrics import Labels, Metrics
from server.repository import Catalogue, Model
from server.settings import Settings

log = logging.getLogger(__name__)


def catalogue_of(settings: Settings, versions: dict[str, int]) -> Catalogue:
    """The models that a replica serves.

    Raises:
        ManifestError: there is no model to serve, or one that was asked for is missing.
    """
    found = repository.scan(settings.repository, settings.models, settings.default_model)
    chosen = {key: model for key, model in found.models.items() if versions.get(key.name, key.version) == key.version}
    if missing := versions.keys() - {key.name for key in chosen}:
        raise ManifestError(f"not in {settings.repository} in that version: {', '.join(sorted(missing))}")
    return replace(found.serving(chosen, {}), default_model=found.default_model)


def check_gpus(assigned: float) -> None:
    """Refuse more GPUs than a replica uses, rather than leave the others idle.

    Raises:
        ValueError: Ray has assigned several to this replica.
    """
    if assigned > 1:
        raise ValueError(f"a replica uses one GPU, not {assigned:g}: set num_gpus: 1 and as many replicas as GPUs")


class _Crop(NamedTuple):
    """A job's payload."""

    pixels: NDArray[np.uint8]
    model: Labels
    top_k: int | None
    include: Extras
    decode_times_s: tuple[float, float]
    """waiting for a thread, and decoding"""
    future: asyncio.Future[Classes]


class LocalEngine:
    """A `Classifier` whose engine runs in this process."""

    connected = True
    """False once the device is lost."""
    away: Sequence[int] = ()
    """See `Classifier`: this process is the engine."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, metrics: Metrics, count: Callable[[int], None]
    ) -> None:
        """Load and warm up every model; blocks. Calls `count` with the number of crops under way when it changes.

        Raises:
            ManifestError: a file has another digest, or gives other answers, than its manifest says.
            Exception: whatever the runtime reports.
        """
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count()
        self._under_way = 0
        self._tell = count
        self._admission = Admission(settings.queue_size)
        jpeg_decoder = jpeg.start(settings, metrics.count_gpu_decode)
        self._decoders = Decoders(
            partial(decode, max_pixels=settings.max_pixels, jpeg_decoder=jpeg_decoder), settings.decode_threads
        )
        self._timer: asyncio.TimerHandle | None = None
        self._engine: Engine[_Crop] = Engine(wake=lambda: self._call_in_loop(self._step), on_start=self._started)
        for model in catalogue.models.values():
            warm = loading.load(catalogue.folder, model, settings)
            self._engine.add_model(model.id, warm.backend, warm.limits, latency_s=warm.latency_s)
        metrics.engine_ready.labels("engine", "all").set(1)

    def has(self, _model: str) -> bool:
        """See `Classifier`."""
        return self.connected

    def check_admission(self, permits: int = 1, within_s: float = math.inf) -> None:
        """See `Classifier`."""
        if not self.connected:
            raise ServiceError(Code.ENGINE_UNAVAILABLE, "the device is lost; try again soon")
        self._admission.check(permits, self._under_way, within_s)

    async def classify(
        self,
        image: Image,
        model: Model,
        top_k: int | None,
        deadline_s: float,
        *,
        crops: CropCount = 1,
        priority: Priority = Priority.NORMAL,
        follow: Follow | None = None,
        include: Extras = Extras.NONE,
    ) -> list[Classes]:
        """See `Classifier`."""
        started_s = time.monotonic()
        self.check_admission(crops, deadline_s - started_s)
        self._count(crops)
        permits, jobs = self._under_way, list[Job[_Crop]]()
        pixels = [np.empty(model.manifest.input_shape, np.uint8) for _ in range(crops)]

        async def ask(
            asked: Model, top_k: int | None, arrived_s: float, decode_times_s: tuple[float, float]
        ) -> list[Classes]:
            jobs.clear()
            labels = asked.manifest.name, str(asked.manifest.version)
            for each in pixels:
                crop = _Crop(each, labels, top_k, include, decode_times_s, self._loop.create_future())
                jobs.append(Job(next(self._ids), arrived_s, deadline_s, crop, priority=priority))
                self._engine.submit(asked.id, jobs[-1])
            self._step()
            return [await job.payload.future for job in jobs]

        try:
            async with asyncio.timeout(deadline_s - started_s):
                preprocessing = model.manifest.preprocessing
                decoded = await asyncio.wrap_future(
                    self._decoders.submit(image, preprocessing, pixels, lambda: time.monotonic() < deadline_s)
                )
                if decoded is None:
                    raise ServiceError(Code.DEADLINE_EXCEEDED, "the deadline passed before the image was decoded")
                times = decoded.started_s - started_s, decoded.ended_s - decoded.started_s
                answers = await ask(model, top_k, decoded.ended_s, times)
                while follow and (question := follow(answers)):
                    answers = await ask(*question, time.monotonic(), (0.0, 0.0))
                if include:
                    answers = [each._replace(photo_size=decoded.size) for each in answers]
        except TimeoutError:
            raise ServiceError(Code.DEADLINE_EXCEEDED, "the answer was not ready within the time limit") from None
        finally:
            for job in jobs:
                self._engine.cancel(job.id)
                job.payload.future.cancel()
            self._count(-crops)
        self._admission.observe(permits, time.monotonic() - started_s)
        return answers

    def close(self) -> None:
        """Wait for running work, then release everything."""
        self._decoders.close(wait=True)
        self._engine.close()

    def _step(self) -> None:
        """Advance the engine, and schedule the next step for when something is due."""
        try:
            for outcome in self._engine.step():
                self._answer(outcome)
        except DeviceLostError:
            log.exception("the device is lost: Ray replaces this replica")
            self.connected = False
            return
        if self._timer:
            self._timer.cancel()
        due_s = self._engine.next_event_s()
        self._timer = None if due_s is None else self._loop.call_later(max(0, due_s - time.monotonic()), self._step)

    def _started(self, jobs: Sequence[Job[_Crop]]) -> None:
        labels = jobs[0].payload.model
        self._metrics.batch_size.labels(*labels).observe(len(jobs))
        for job in jobs:
            self._metrics.queue.labels(*labels).observe(time.monotonic() - job.arrived_s)

    def _answer(self, outcome: Outcome[_Crop]) -> None:
        crop, result = outcome.job.payload, outcome.result
        if crop.future.done():
            return  # the request is over
        if isinstance(result, ServiceError):
            crop.future.set_exception(result)
            crop.future.exception()  # mark it as retrieved: of several crops only the first failure is awaited
            return
        self._metrics.inference.labels(*crop.model).observe(result.inference_s)
        decode_wait_s, decode_s = crop.decode_times_s
        crop.future.set_result(result._replace(decode_wait_s=decode_wait_s, decode_s=decode_s))

    def _count(self, more: int) -> None:
        self._under_way += more
        self._tell(self._under_way)

    def _call_in_loop(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the replica is ending
            self._loop.call_soon_threadsafe(function)
