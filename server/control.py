"""What the supervisor and its children tell each other, over one pipe for each child. A closed pipe means: stop.

Each direction is a closed union, at the end of this file; who hears one matches all of it (`assert_never`).
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
    """By the models' ids."""
    measured: Mapping[str, Measured]
    """Of the others, in the order in which they were loaded."""


class Load(NamedTuple):
    """Supervisor to engine: load one more model, and warm it, while the others are served."""

    model: Model


class Loaded(NamedTuple):
    """Engine to supervisor: the model is there, or was refused."""

    model_id: str
    refusal: Refusal | None
    measured: Measured | None
    """None: it was refused"""


class Unload(NamedTuple):
    """Supervisor to engine: nobody names this model any more; its memory is free."""

    model_id: str


class Heartbeat(NamedTuple):
    """Child to supervisor: there is progress; the loop turns, and no batch or decoder hangs."""


HEARTBEAT_S = 1.0
"""How often a child that makes progress says so."""


class WorkerReady(NamedTuple):
    """HTTP worker to supervisor: it accepts connections."""


class Connected(NamedTuple):
    """HTTP worker to supervisor: it can submit to an engine."""


class EngineUp(NamedTuple):
    """Supervisor to HTTP workers: submit to this engine here from now on, if it is for one of these models."""

    engine: int
    address: str
    models: frozenset[str]
    """Their ids."""


class Serve(NamedTuple):
    """Supervisor to HTTP workers: this is what requests may name from now on."""

    catalogue: Catalogue
    generation: int
    held: tuple[frozenset[str], ...] = ()
    """the ids of the models that each engine has, or had when it was last there"""
    usable: frozenset[str] | None = None
    """ids of the models that requests may begin with; None: all in the catalogue"""
    loading: Mapping[str, float] = {}
    """ids of the models that are being loaded, and how many seconds that is likely to take"""


class Hold(NamedTuple):
    """Supervisor to HTTP workers: where the models of the newest catalogue are; as `Serve`, without that."""

    generation: int
    held: tuple[frozenset[str], ...]
    usable: frozenset[str] | None
    loading: Mapping[str, float]


class Start(NamedTuple):
    """Supervisor to a new HTTP worker: what it is to be."""

    number: int
    places: tuple[Place, ...]
    """of the engines"""
    settings: Settings
    serve: Serve
    slots: Slots
    listener: socket.socket
    keys: tuple[Key, ...] | None
    certificate: Certificate | None
    folder: Path
    """the run's"""


class Serving(NamedTuple):
    """HTTP worker to supervisor: this is what requests to it name by now."""

    generation: int


class Drained(NamedTuple):
    """HTTP worker to supervisor: no request of its own needs a model that is not usable by this or a newer message."""

    generation: int


class Demand(NamedTuple):
    """HTTP worker to supervisor: what its requests do with models, where not all are loaded."""

    waiting: frozenset[str]
    """ids of those that requests wait for"""
    used: tuple[str, ...]
    """ids of those that requests were for since it last said so, the last one used at the end"""


class Change(NamedTuple):
    """HTTP worker to supervisor: load or unload a model. One `Changed` answers it."""

    id: int
    name: str
    action: Literal["load", "unload"]


class Changed(NamedTuple):
    """Supervisor to HTTP worker: it is done, or was refused."""

    id: int
    error: ServiceError | None


class EngineDown(NamedTuple):
    """Supervisor to HTTP workers: this engine is not there. Where it is `recovering`, requests wait for it."""

    engine: int
    recovering: bool


class Authorise(NamedTuple):
    """Supervisor to HTTP workers: these are the API keys from now on."""

    keys: tuple[Key, ...]


class Renew(NamedTuple):
    """Supervisor to HTTP workers: show this certificate from now on."""

    certificate: Certificate


class Draining(NamedTuple):
    """Supervisor to HTTP workers: fail the readiness probe, go on serving."""


class Finish(NamedTuple):
    """Supervisor to HTTP workers: accept no more, answer what was accepted, end."""


ToWorker = EngineUp | EngineDown | Serve | Hold | Changed | Authorise | Renew | Draining | Finish
FromWorker = Heartbeat | WorkerReady | Connected | Serving | Drained | Demand | Change
ToEngine = Load | Unload
FromEngine = Heartbeat | EngineReady | Loaded
