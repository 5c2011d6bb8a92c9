"""One HTTP worker process: uvicorn, the app, gRPC if enabled, and the supervisor's pipe."""

import asyncio
import contextlib
import gc
import math
import socket
import threading
from collections.abc import Generator, Set
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, assert_never

import uvicorn
import uvloop
from starlette.types import ASGIApp

from server import logs, tls, tracing
from server.control import (
    HEARTBEAT_S,
    Authorise,
    Changed,
    Connected,
    Drained,
    Draining,
    EngineDown,
    EngineUp,
    Finish,
    FromWorker,
    Heartbeat,
    Hold,
    Renew,
    Serve,
    Serving,
    Start,
    ToWorker,
    WorkerReady,
)
from server.engine.background import Background
from server.engine.decoding import Decoders
from server.engine.remote import RemoteEngine
from server.http import uvicorn_internals
from server.http.access import AccessLog
from server.http.app import create_app
from server.http.protocol import protocol_class
from server.http.tracing import TraceResponse
from server.images import jpeg
from server.images.decode import decode as decode_image
from server.keys import Keys, usage_table
from server.listeners import shown
from server.metrics import Metrics
from server.serving.loads import Loads
from server.serving.permits import Permits
from server.serving.service import Changes, Service
from server.serving.shadows import Shadows
from server.settings import Settings
from server.tls import Certificate

if TYPE_CHECKING:
    from server.grpc import service as grpc


def main(start: Start, control: Connection) -> None:
    """Serve the listener until the supervisor says to finish."""
    logs.configure(start.settings.log_level, start.settings.log_format)
    logs.bound_bursts()
    uvloop.run(_serve(start, control))


async def _serve(start: Start, control: Connection) -> None:
    settings = start.settings
    name = f"http-{start.number}"
    metrics = Metrics(name)
    metrics.pending.set(0)  # discards the predecessor's value
    owned = range(start.number * settings.slots_per_worker, (start.number + 1) * settings.slots_per_worker)
    permits = Permits(settings.slots_per_worker)

    def count(pending: int) -> None:
        metrics.pending.set(pending)
        permits.changed()

    tracing.start(settings)
    decode = partial(
        decode_image, max_pixels=settings.max_pixels, jpeg_decoder=jpeg.start(settings, metrics.count_gpu_decode)
    )
    decoders = Decoders(decode, settings.decode_threads)
    engine = RemoteEngine(start.slots, owned, decoders, count, start.number)
    keys = None
    if start.keys is not None:
        keys = Keys(start.keys, start.number, usage_table(start.folder, settings.http_workers))
    changes = Changes(control.send)
    service = Service(
        settings, start.serve.catalogue, engine, metrics, changes, permits, keys, start.certificate, start.places
    )
    if start.serve.usable is not None:
        send = partial(_send, control)
        service.loads = Loads(send, lambda: service.leases.taken, most_waiting=len(owned))
        service.loads.update(start.serve.usable, start.serve.loading)
    server = _Server(service, control)
    background = Background(
        start.slots, settings.slots_per_worker * settings.http_workers + start.number, decode, len(start.places)
    )
    service.shadows = Shadows(background, service.leases, metrics)
    supervised = _Supervised(service, engine, background, decoders, server, control)
    supervised.begin()
    gc.freeze()  # what exists now lives as long as the process: no collection needs to visit it again
    await server.serve(sockets=[start.listener])
    await tracing.stop()
    engine.close()
    background.close()
    decoders.close(wait=False)


def config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """uvicorn's settings (docs/reference/defaults.md lists those left at their defaults)."""
    return uvicorn.Config(
        app,
        http=protocol_class(settings.header_timeout_ms, settings.max_connections),
        workers=1,  # else uvicorn would read WEB_CONCURRENCY, which is meant for other servers
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_ms / 1e3),
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_ms / 1e3)),
    )


def _observed(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Wrap the app in tracing and the access log, as far as the settings enable them."""
    if tracing.is_on():
        app = TraceResponse(app)
    return AccessLog(app, settings.trusted_proxies) if settings.access_log else app


class _Supervised:
    """Obeys the supervisor's messages and sends it heartbeats."""

    def __init__(
        self,
        service: Service,
        engine: RemoteEngine,
        background: Background,
        decoders: Decoders,
        server: "_Server",
        control: Connection,
    ) -> None:
        self._service = service
        self._engine = engine
        self._background = background
        self._decoders = decoders
        self._server = server
        self._control = control
        self._ups: dict[int, EngineUp] = {}  # the engines that are up
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        self._beat()
        self._want_background()
        # In a thread: the event loop would make the pipe non-blocking, but a long message arrives in pieces.
        threading.Thread(target=self._hear, name="supervised", daemon=True).start()

    def _hear(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            try:
                while True:
                    self._loop.call_soon_threadsafe(self._obey, self._control.recv())
            except (EOFError, OSError):
                self._loop.call_soon_threadsafe(self._exit)

    def _exit(self) -> None:
        self._server.should_exit = self._server.force_exit = True

    def _obey(self, message: ToWorker) -> None:
        service = self._service
        match message:
            case EngineUp():
                self._ups[message.engine] = message
                self._connect(message)
                self._background.engine_up(*message)
            case EngineDown(number, recovering):
                was_up = self._ups.pop(number, None)
                self._engine.engine_down(number, recovering=recovering)
                self._background.engine_down(number, recovering=recovering)
                if was_up and service.shadows:
                    service.shadows.engine_ended()
            case Serve(catalogue, generation, held, usable, loading):
                service.catalogue = catalogue
                self._want_background()
                self._hold(Hold(generation, held, usable, loading))
            case Hold():
                self._hold(message)
            case Changed(change_id, error):
                service.changes.done(change_id, error)
            case Authorise(keys):
                if service.keys:
                    service.keys.replace(keys)
            case Renew(certificate):
                self._server.show(certificate)
            case Draining():
                service.draining = True
            case Finish():
                self._server.should_exit = True
            case _:
                assert_never(message)
        self._show_engines()
        service.changed()

    def _want_background(self) -> None:
        if self._service.catalogue.candidates.shadows:
            self._background.want()

    def _hold(self, hold: Hold) -> None:
        service = self._service
        self._engine.hold(hold.held, hold.usable)
        self._background.hold(hold.held, hold.usable)
        kept: Set[str] = {model.id for model in service.catalogue.models.values()}
        if service.loads and hold.usable is not None:
            service.loads.update(hold.usable, hold.loading)
            kept = kept & hold.usable
        self._tell(Serving(hold.generation))
        service.leases.when_drained(kept, partial(self._tell, Drained(hold.generation)))

    def _connect(self, up: EngineUp) -> None:
        """Connect to an engine, retrying until it works: this process may be out of file descriptors for the moment."""
        if self._ups.get(up.engine) is not up:
            return
        if self._engine.engine_up(*up):
            self._show_engines()
            self._service.changed()
            self._tell(Connected())
        else:
            self._loop.call_later(HEARTBEAT_S, self._connect, up)

    def _show_engines(self) -> None:
        away = self._engine.away
        for number, place in enumerate(self._service.places):
            self._service.metrics.engine_ready.labels(place.name, place.device).set(number not in away)

    def _beat(self) -> None:
        if self._decoders.longest_s() < self._service.settings.stall_timeout_ms / 1e3:
            self._tell(Heartbeat())
        if self._service.loads:
            self._service.loads.tell()
        self._loop.call_later(HEARTBEAT_S, self._beat)

    def _tell(self, message: FromWorker) -> None:
        _send(self._control, message)


def _send(control: Connection, message: FromWorker) -> None:
    with contextlib.suppress(OSError):  # the supervisor is gone, which `_hear` notices
        control.send(message)


class _Server(uvicorn.Server):
    """Tells the supervisor once it accepts connections, and leaves signals to the supervisor."""

    def __init__(self, service: Service, control: Connection) -> None:
        settings = service.settings
        self._service = service
        self._grpc: grpc.Server | None = None
        super().__init__(config(_observed(create_app(service), settings), settings))
        self._control = control
        self._tls = tls.Renewable(service.certificate) if service.certificate else None

    def show(self, certificate: Certificate) -> None:
        """Use this certificate for new connections."""
        if self._tls:
            self._tls.renew(certificate)
        self._service.certificate = certificate

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        settings = self._service.settings
        if settings.grpc_port is not None:
            from server.grpc import service as grpc_service

            self._grpc = await grpc_service.start(self._service, shown(settings.host, settings.grpc_port))
        await super().startup([])
        await self._listen(sockets or [])
        with contextlib.suppress(BrokenPipeError):  # the supervisor is already ending, and will end this process, too
            self._control.send(WorkerReady())

    async def _listen(self, sockets: list[socket.socket]) -> None:
        encrypted: dict[str, Any] = {}
        if self._tls:
            encrypted = {
                "ssl": self._tls.context,
                "ssl_handshake_timeout": self._service.settings.header_timeout_ms / 1e3,
                "ssl_shutdown_timeout": tls.GOODBYE_S,
            }
        await uvicorn_internals.listen(self, sockets, **encrypted)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, over either protocol, and wait for what was accepted."""
        draining = asyncio.ensure_future(
            self._grpc.stop(self._service.settings.drain_timeout_ms / 1e3) if self._grpc else asyncio.sleep(0)
        )
        await super().shutdown(sockets)
        while not (draining.done() or self.force_exit):
            await asyncio.wait([draining], timeout=0.1)  # as often as uvicorn checks `force_exit`

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
