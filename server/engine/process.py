"""The engine process: connects the engine core to the sockets, slots and pipe of the other processes."""

import gc
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import zmq
from numpy.typing import NDArray

from models import manifest
from models.manifest import Manifest, ManifestError
from server import logs, metrics
from server.control import HEARTBEAT_S, EngineReady, Heartbeat
from server.engine import backends
from server.engine.backends import Backend, DeviceLostError
from server.engine.core import Engine, Outcome
from server.engine.messages import Answer, Cancel, Dropped, Failure, Reply, Submit, decode_request, encode
from server.engine.scheduler import Job, Limits, buckets
from server.engine.slots import Slots
from server.errors import Code, ServiceError
from server.repository import Catalogue, ModelKey
from server.settings import Settings

log = logging.getLogger(__name__)


class _Image(NamedTuple):
    """A job's payload: whose it is, and where its pixels are."""

    owner: bytes
    id: int
    slot: int
    pixels: NDArray[np.uint8]
    model: str
    top_k: int | None


def main(settings: Settings, catalogue: Catalogue, slots: Slots, address: str, control: Connection) -> None:
    """Load every model, then serve jobs at `address` until the supervisor closes its end of the pipe."""
    logs.configure(settings.log_level)
    loaded: dict[ModelKey, tuple[Backend, Manifest]] = {}
    refused: dict[ModelKey, str] = {}
    for key, found in catalogue.manifests.items():
        try:
            loaded[key] = _load(catalogue, found, settings, lambda: control.send(Heartbeat())), found
        except (DeviceLostError, BrokenPipeError):
            raise  # this process is of no use to any model
        except Exception as error:  # whatever is wrong with one model must not take the others down
            refused[key] = str(error)
            log.warning("%s is refused: %s", key, error)
    gc.freeze()  # what is here now stays: no collection needs to look at it again
    with backends.page_locked(slots.memory, [backend for backend, _ in loaded.values()]):
        _Process(settings, loaded, slots, address, control).serve(EngineReady(address, refused))


def _load(catalogue: Catalogue, found: Manifest, settings: Settings, progress: Callable[[], None]) -> Backend:
    """Verify the digest, load, and run a batch of every bucket, so that no request pays for a first time.

    Raises:
        ManifestError: the file is not the manifest's, in its digest or in what it answers.
        Exception: whatever the runtime reports.
    """
    started_s = time.monotonic()
    folder = catalogue.folder / found.name / str(found.version)
    backend = backends.load(found, manifest.read_model_file(folder, found), settings)
    for size in buckets(settings.max_batch):
        progress()
        outputs = backend.run([np.zeros(found.input_shape, np.uint8)] * size)
        if (outputs.indices.shape, outputs.logits.shape) != ((size, found.top_k), (size, found.num_classes)):
            raise ManifestError(
                f"{folder / found.file.name}: it does not rank {found.num_classes} classes as it should"
            )
    log.info("%s version %d is warm after %.1f s", found.name, found.version, time.monotonic() - started_s)
    return backend


class _Process:
    """One thread reads requests, steps the engine and sends what came of it."""

    def __init__(
        self,
        settings: Settings,
        loaded: dict[ModelKey, tuple[Backend, Manifest]],
        slots: Slots,
        address: str,
        control: Connection,
    ) -> None:
        self._manifests = {key: found for key, (_, found) in loaded.items()}
        self._slots = slots
        self._control = control
        self._stall_s = settings.stall_timeout_ms / 1e3
        self._metrics = metrics.Metrics("engine")
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        limits = Limits(settings.max_batch, settings.max_wait_ms / 1e3, settings.queue_size)
        self._engine: Engine[_Image] = Engine(
            {key: (backend, limits) for key, (backend, _) in loaded.items()},
            wake=lambda: os.eventfd_write(self._wake, 1),
            on_start=self._started,
            lanes=max((backend.lanes for backend, _ in loaded.values()), default=1),
        )
        self._workers: dict[bytes, bytes] = {}  # the living process of each HTTP worker, by its name
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.set_hwm(0)  # the slots bound what can be under way
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)

    def serve(self, ready: EngineReady) -> None:
        """Say that the engine is ready, then turn the loop until the supervisor closes its end of the pipe."""
        poller = zmq.Poller()
        for source in (self._socket, self._wake, self._control.fileno()):
            poller.register(source, zmq.POLLIN)
        self._control.send(ready)
        heartbeat_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if now_s >= heartbeat_s and now_s - (self._engine.oldest_start_s() or now_s) < self._stall_s:
                self._control.send(Heartbeat())
                heartbeat_s = now_s + HEARTBEAT_S
                for key in self._manifests:
                    self._metrics.queue_length.labels(key.name).set(self._engine.queue_length(key))
            due_s = min(self._engine.next_event_s() or math.inf, now_s + HEARTBEAT_S)
            ready_sources = dict(poller.poll(max(0, math.ceil((due_s - now_s) * 1e3))))
            if self._control.fileno() in ready_sources:
                return  # the supervisor's end is closed: it stopped this engine, or is gone itself
            if self._wake in ready_sources:
                os.eventfd_read(self._wake)
            replies = self._receive() if self._socket in ready_sources else []
            replies += [self._reply(outcome) for outcome in self._engine.step()]
            self._send(replies)

    def _receive(self) -> list[tuple[bytes, Reply]]:
        """Take all requests that have arrived; the replies are to those that end at once."""
        replies: list[tuple[bytes, Reply]] = []
        while True:
            try:
                owner, content = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return replies
            self._forget_predecessor(owner)
            request = decode_request(content)
            if isinstance(request, Cancel):
                if self._engine.cancel((owner, request.id)):
                    replies.append((owner, Dropped(request.id)))
                continue
            try:
                self._submit(owner, request)
            except ServiceError as error:
                replies.append((owner, Failure(request.id, error.code, error.detail)))

    def _submit(self, owner: bytes, request: Submit) -> None:
        key = ModelKey(request.model, request.version)
        if key not in self._manifests:
            raise ServiceError(Code.ENGINE_UNAVAILABLE, f"{key} is not loaded any more; try again later")
        pixels = self._slots.pixels(request.slot, self._manifests[key].input_shape)
        image = _Image(owner, request.id, request.slot, pixels, request.model, request.top_k)
        job = Job((owner, request.id), request.arrived_s, request.deadline_s, image, request.alone, request.priority)
        self._engine.submit(key, job)

    def _forget_predecessor(self, owner: bytes) -> None:
        """When a restarted HTTP worker first speaks, what its predecessor left in the queue is nobody's."""
        name = owner.partition(b":")[0]
        predecessor = self._workers.get(name)
        if predecessor != owner:
            self._workers[name] = owner
            self._engine.cancel_where(lambda job: job.payload.owner == predecessor)

    def _started(self, jobs: Sequence[Job[_Image]]) -> None:
        self._slots.running[[job.payload.slot for job in jobs]] = True
        now_s = time.monotonic()
        model = jobs[0].payload.model
        self._metrics.batch_size.labels(model).observe(len(jobs))
        for job in jobs:
            self._metrics.queue.labels(model).observe(now_s - job.arrived_s)

    def _reply(self, outcome: Outcome[_Image]) -> tuple[bytes, Reply]:
        image, result = outcome.job.payload, outcome.result
        self._slots.running[image.slot] = False
        if isinstance(result, ServiceError):
            return image.owner, Failure(image.id, result.code, result.detail)
        self._metrics.inference.labels(image.model).observe(result.inference_s)
        ranked = slice(0, image.top_k) if image.top_k is not None else slice(0)
        return image.owner, Answer(
            image.id,
            result.probabilities[ranked].tobytes(),
            result.indices[ranked].tobytes(),
            b"" if image.top_k is not None else result.logits.tobytes(),
            result.queue_s,
            result.inference_s,
            result.batch_size,
        )

    def _send(self, replies: list[tuple[bytes, Reply]]) -> None:
        """One message for each HTTP worker; what is for one that is gone is dropped by the socket."""
        by_owner: dict[bytes, list[Reply]] = defaultdict(list)
        for owner, reply in replies:
            by_owner[owner].append(reply)
        for owner, together in by_owner.items():
            self._socket.send_multipart((owner, encode(together)))
