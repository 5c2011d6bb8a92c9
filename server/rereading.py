"""Files that are read again while the server runs: the repository, API keys and the certificate.

They may be on a network volume that hangs, so threads read them and hand their findings to the supervisor's loop.
"""

import logging
import socket
from collections.abc import Callable, Set
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

from models.manifest import ManifestError, UnreadableError
from server.aside import Aside
from server.control import Authorise, Change, Renew
from server.errors import Code, ServiceError
from server.model_control import ModelControl
from server.repository import Catalogue, ModelKey, Watch
from server.resources import Resources

LOOK_S = 1.0
"""How often to check the files of keys and certificate for changes."""
PATIENCE_S = 30.0
"""A request to load a model is refused if the repository has not been read within this time: its volume hangs."""

log = logging.getLogger(__name__)


class _Held(NamedTuple):
    """A change that waits until the repository has been read."""

    worker: str
    change: Change
    give_up_s: float


class Rereading:
    """Passes new contents of the repository to `models`, and new keys and certificates to the HTTP workers."""

    def __init__(
        self,
        resources: Resources,
        catalogue: Catalogue,
        models: ModelControl,
        tell_workers: Callable[[Authorise | Renew], None],
        now_s: float,
    ) -> None:
        settings = resources.settings
        self._resources = resources
        self._models = models
        self._tell_workers = tell_workers
        self._repository = Watch(
            settings.repository,
            settings.models,
            settings.reload_ms / 1e3,
            now_s,
            whole=not any(refusal.is_tried_again for refusal in catalogue.refused.values()),
        )
        self._for_repository, self._for_protection = self._asides = Aside("repository"), Aside("protection")
        self._look_s = 0.0  # when to look at keys and certificate again
        self._held: list[_Held] = []

    @property
    def bells(self) -> list[socket.socket]:
        """Sockets, one of which becomes readable once files have been read; then call `deliver`."""
        return [aside.bell for aside in self._asides]

    def deliver(self) -> None:
        """Pass on what the threads have found."""
        for aside in self._asides:
            aside.deliver()

    def begin_due(self, now_s: float) -> None:
        """Start reading the files that are due, unless the last read of them is still going on."""
        if now_s >= self._look_s and self._for_protection.idle:
            self._look_s = now_s + LOOK_S
            self._for_protection.call(self._resources.protection.look, self._protected)
        if self._for_repository.idle and self._repository.is_due(now_s):
            look = partial(self._repository.look, now_s, self._may_be_named)
            self._for_repository.call(look, self._looked)
        for held in [held for held in self._held if now_s >= held.give_up_s]:
            self._held.remove(held)
            hangs = ServiceError(Code.MODEL_UNAVAILABLE, f"the repository was not read within {PATIENCE_S:.0f} s")
            self._models.refuse(held.worker, held.change, hangs)

    def begin_all(self, now_s: float) -> None:
        """Start reading all files, changed or not; refused models are tried again."""
        self._for_protection.call(partial(self._resources.protection.look, again=True), self._protected)
        look = partial(self._repository.look, now_s, self._may_be_named, again=True)
        self._for_repository.call(look, self._looked)

    def load(self, worker: str, change: Change, now_s: float) -> None:
        """Load a model for an HTTP worker, after reading the repository again."""
        held = _Held(worker, change, now_s + PATIENCE_S)
        self._held.append(held)
        self._for_repository.call(partial(self._repository.scan, self._may_be_named), partial(self._scanned_for, held))

    def worker_ended(self, worker: str) -> None:
        """Drop the changes that this worker asked for."""
        self._held = [held for held in self._held if held.worker != worker]

    @property
    def _may_be_named(self) -> list[str]:
        """Names of models that clients have asked to load, whether the repository has them or not."""
        return [*self._models.asked_for, *(held.change.name for held in self._held)]

    def _scanned_for(self, held: _Held, scan: Future[Catalogue]) -> None:
        if not any(held is each for each in self._held):
            return  # the worker has ended, or its change was refused
        self._held = [each for each in self._held if each is not held]
        try:
            self._models.scanned(scan.result())
        except ManifestError as error:
            code = Code.MODEL_UNAVAILABLE if isinstance(error, UnreadableError) else Code.UNKNOWN_MODEL
            self._models.refuse(held.worker, held.change, ServiceError(code, str(error)))
        else:
            self._models.asked(held.worker, held.change)

    def _looked(self, look: Future[tuple[Catalogue, Set[ModelKey]] | None]) -> None:
        try:
            if found := look.result():
                self._models.scanned(*found)
        except UnreadableError as error:  # the next look reads it again
            log.warning("the repository cannot be read: %s", error)
        except ManifestError as error:
            log.warning("the repository has changed, but cannot be served: %s", error)

    def _protected(self, look: Future[list[Authorise | Renew]]) -> None:
        for message in look.result():
            if isinstance(message, Authorise):
                self._resources.keep_usage()
            self._tell_workers(message)
