"""One HTTP worker process: uvicorn, the app, and the supervisor's pipe."""

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection

import numpy as np
import uvicorn
import uvloop
from numpy.typing import NDArray

from models.manifest import Preprocessing
from server import logs
from server.control import HEARTBEAT_S, Draining, EngineDown, EngineUp, Finish, Heartbeat, WorkerReady
from server.engine.client import EngineClient
from server.engine.slots import Slots
from server.http.app import create_app
from server.http.protocol import protocol_class
from server.http.service import Service
from server.http.uploads import Uploads
from server.images.decode import decode
from server.metrics import Metrics
from server.repository import Catalogue
from server.settings import Settings


def main(
    index: int,
    settings: Settings,
    catalogue: Catalogue,
    slots: Slots,
    listener: socket.socket,
    control: Connection,
) -> None:
    """Serve `listener` until the supervisor says to finish."""
    logs.configure(settings.log_level)
    uvloop.run(_serve(index, settings, catalogue, slots, listener, control))
    os._exit(0)  # without waiting for a decoder that nobody waits for any more


async def _serve(
    index: int,
    settings: Settings,
    catalogue: Catalogue,
    slots: Slots,
    listener: socket.socket,
    control: Connection,
) -> None:
    def decode_into(data: bytes, preprocessing: Preprocessing, outs: Sequence[NDArray[np.uint8]]) -> None:
        decode(data, preprocessing, outs, max_pixels=settings.max_pixels)

    name = f"http-{index}"
    owned = range(index * settings.slots_per_worker, (index + 1) * settings.slots_per_worker)
    metrics = Metrics(name)
    client = EngineClient(name, slots, owned, decode_into, settings.decode_threads, metrics.pending.set)
    uploads = Uploads(settings.max_body_bytes, settings.max_buffered_bytes, settings.body_timeout_ms / 1e3)
    service = Service(settings, catalogue, client, uploads, metrics)
    server = _Server(service, control)

    def on_supervisor() -> None:
        try:
            while control.poll():
                _obey(control.recv(), service, catalogue, server)
        except (EOFError, OSError):
            server.should_exit = server.force_exit = True

    loop = asyncio.get_running_loop()

    supervisor = os.getppid()

    def beat() -> None:
        if os.getppid() != supervisor:  # the loop is not told of a pipe that was reset: libuv drops it
            server.should_exit = server.force_exit = True
        elif client.longest_decode_s() < settings.stall_timeout_ms / 1e3:
            with contextlib.suppress(OSError):
                control.send(Heartbeat())
        loop.call_later(HEARTBEAT_S, beat)

    beat()
    loop.add_reader(control.fileno(), on_supervisor)
    gc.freeze()  # what is here now stays: no collection needs to look at it again
    await server.serve(sockets=[listener])
    loop.remove_reader(control.fileno())
    client.close()


def _obey(message: object, service: Service, catalogue: Catalogue, server: uvicorn.Server) -> None:
    match message:
        case EngineUp(address, refused):
            service.catalogue = catalogue.refuse(refused)
            service.client.engine_up(address)
        case EngineDown(recovering):
            service.client.engine_down(recovering=recovering)
        case Draining():
            service.draining = True
        case Finish():
            server.should_exit = True
    service.metrics.engine_ready.set(service.client.connected)


class _Server(uvicorn.Server):
    """Tells the supervisor when it accepts, and leaves the signals to it."""

    def __init__(self, service: Service, control: Connection) -> None:
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=protocol_class(settings.header_timeout_ms),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=settings.max_connections,
                timeout_graceful_shutdown=max(1, round(settings.drain_timeout_ms / 1e3)),
            )
        )
        self._control = control

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._control.send(WorkerReady())

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
