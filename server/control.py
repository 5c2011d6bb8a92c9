"""Messages between the supervisor and its children, over one pipe per child. A closed pipe means: stop.

Each direction is a closed union, at the end of this file; its receiver matches every member (`assert_never`).
"""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from server.errors import ServiceError
from server.fitting import Measured
from server.keys import Key
from server.placement import Place
from server.refusals import Refusal
from server.repository import Catalogue, Model
from server.settings import Settings
from server.slots import Slots
from server.tls import Certificate


class EngineReady(NamedTuple):
    """Engine to supervisor: every model that can be loaded has run its warm-up."""

    address: str
    refused: Mapping[str, Refusal]
    """By model id."""
    measured: Mapping[str, Measured]
    """The loaded models by id, in the order in which they were loaded."""


class Load(NamedTuple):
    """Supervisor to engine: load and warm up one more model, while serving the others."""

    model: Model


class Loaded(NamedTuple):
    """Engine to supervisor: the model is loaded, or was refused."""

    model_id: str
    refusal: Refusal | None
    measured: Measured | None
    """None if it was refused."""


class Unload(NamedTuple):
    """Supervisor to engine: no request can name this model any more; free its memory."""

    model_id: str


class Heartbeat(NamedTuple):
    """Child to supervisor: the child makes progress; its loop turns, and no batch or decoder hangs."""


HEARTBEAT_S = 1.0
"""Interval between a child's heartbeats, while it makes progress."""


class WorkerReady(NamedTuple):
    """HTTP worker to supervisor: it accepts connections."""


class Connected(NamedTuple):
    """HTTP worker to supervisor: it can submit to an engine."""


class EngineUp(NamedTuple):
    """Supervisor to HTTP workers: from now on, submit requests for these models to this engine, at this address."""

    engine: int
    address: str
    models: frozenset[str]
    """Model ids."""


class Serve(NamedTuple):
    """Supervisor to HTTP workers: the models that requests may name from now on."""

    catalogue: Catalogue
    generation: int
    held: tuple[frozenset[str], ...] = ()
    """Per engine, the ids of its models; of an engine that is down, those it last had."""
    usable: frozenset[str] | None = None
    """Ids of the models that new requests may use at once; None: all in the catalogue."""
    loading: Mapping[str, float] = {}
    """Ids of the models being loaded, each with the seconds that this is likely to take."""


class Hold(NamedTuple):
    """Supervisor to HTTP workers: which engines have which models. As `Serve`, for an unchanged catalogue."""

    generation: int
    held: tuple[frozenset[str], ...]
    usable: frozenset[str] | None
    loading: Mapping[str, float]


class Start(NamedTuple):
    """Supervisor to a new HTTP worker: all that it needs to start."""

    number: int
    places: tuple[Place, ...]
    """Of the engines."""
    settings: Settings
    serve: Serve
    slots: Slots
    listener: socket.socket
    keys: tuple[Key, ...] | None
    certificate: Certificate | None
    folder: Path
    """The run's folder."""


class Serving(NamedTuple):
    """HTTP worker to supervisor: it now serves new requests from this generation."""

    generation: int


class Drained(NamedTuple):
    """HTTP worker to supervisor: none of its requests needs a model that only older generations list as usable."""

    generation: int


class Demand(NamedTuple):
    """HTTP worker to supervisor: the models that its requests need. Sent only if not all models are kept loaded."""

    waiting: frozenset[str]
    """Ids of the models that requests wait for."""
    used: tuple[str, ...]
    """Ids of the models that requests have used since the last such message, the most recent one last."""


class Change(NamedTuple):
    """HTTP worker to supervisor: load or unload a model. The supervisor answers with one `Changed`."""

    id: int
    name: str
    action: Literal["load", "unload"]


class Changed(NamedTuple):
    """Supervisor to HTTP worker: the change is done, or was refused."""

    id: int
    error: ServiceError | None


class EngineDown(NamedTuple):
    """Supervisor to HTTP workers: this engine is down. If it is `recovering`, requests wait for it."""

    engine: int
    recovering: bool


class Authorise(NamedTuple):
    """Supervisor to HTTP workers: these are the API keys from now on."""

    keys: tuple[Key, ...]


class Renew(NamedTuple):
    """Supervisor to HTTP workers: present this certificate from now on."""

    certificate: Certificate


class Draining(NamedTuple):
    """Supervisor to HTTP workers: fail the readiness probe, but keep serving."""


class Finish(NamedTuple):
    """Supervisor to HTTP workers: accept no more requests, answer those accepted, and exit."""


ToWorker = EngineUp | EngineDown | Serve | Hold | Changed | Authorise | Renew | Draining | Finish
FromWorker = Heartbeat | WorkerReady | Connected | Serving | Drained | Demand | Change
ToEngine = Load | Unload
FromEngine = Heartbeat | EngineReady | Loaded
