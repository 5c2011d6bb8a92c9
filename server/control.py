"""What the supervisor and its children tell each other, over one pipe for each child. A closed pipe means: stop."""

from collections.abc import Mapping
from typing import NamedTuple

from server.repository import ModelKey


class EngineReady(NamedTuple):
    """Engine to supervisor: every model that can be loaded has run its warm-up."""

    address: str
    refused: Mapping[ModelKey, str]


class Heartbeat(NamedTuple):
    """Child to supervisor: there is progress; the loop turns, and no batch or decoder hangs."""


HEARTBEAT_S = 1.0
"""How often a child that makes progress says so."""


class WorkerReady(NamedTuple):
    """HTTP worker to supervisor: it accepts connections."""


class EngineUp(NamedTuple):
    """Supervisor to HTTP workers: submit here from now on."""

    address: str
    refused: Mapping[ModelKey, str]


class EngineDown(NamedTuple):
    """Supervisor to HTTP workers: the engine is gone. Where it is `recovering`, requests wait for its return."""

    recovering: bool


class Draining(NamedTuple):
    """Supervisor to HTTP workers: fail the readiness probe, go on serving."""


class Finish(NamedTuple):
    """Supervisor to HTTP workers: accept no more, answer what was accepted, end."""
