"""Tells people and programs that the server is ready, and what it serves: in the log and in the ready file."""

import logging
from collections.abc import Mapping

from server.model_control import ModelControl
from server.repository import Catalogue
from server.resources import Resources

log = logging.getLogger(__name__)


class Announcement:
    """Made once, as soon as all processes have been ready and `models` has one to serve."""

    def __init__(self, resources: Resources, models: ModelControl) -> None:
        self._resources = resources
        self._models = models
        self._processes: Mapping[str, int] = {}
        self.due = False
        """Whether all processes have been ready."""
        self.made = False
        """Whether the server was announced; from then on, it is at most out of service for a while."""

    def make(self) -> None:
        """Announce the server, all of whose processes are ready; warn instead if it has no model yet."""
        self.due = True
        served, listeners = self._models.served, self._resources.listeners
        if not served.entries:
            log.warning("listening on %s, and not ready: %s; trying again", listeners.url, reasons(served))
            return
        self.made = True
        for key, found in served.entries.items():
            default = " (default)" if key.name == served.default_model else ""
            random = any(member.manifest.weights.random for member in served.members(found))
            warning = ": RANDOM WEIGHTS, its answers mean nothing" if random else ""
            log.info("serving %s%s%s", key, default, warning)
        for key, refusal in served.refused.items():
            log.warning("not serving %s: %s", key, refusal.reason)
        if served.default_model is None:
            log.warning("requests that name no model are refused: set --default-model to the model that they mean")
        if listeners.grpc_address:
            log.info("gRPC on %s", listeners.grpc_address)
        log.info("ready on %s", listeners.url)
        if unloaded := self._models.states.get("unloaded"):
            log.info("%d models are not loaded until requests name them", unloaded)

    def update(self, before: Catalogue) -> None:
        """Tell what has changed in the served models since `before`, or make an announcement that is due."""
        if not self.made:
            if self.due:
                self.make()
            return
        served = self._models.served
        log.info("serving %s", ", ".join(map(str, served.entries)) or "nothing")
        for key, refusal in served.refused.items():
            if before.refused.get(key) != refusal:
                log.warning("not serving %s: %s", key, refusal.reason)
        if served.default_model != before.default_model:
            log.warning("requests that name no model now mean %s", served.default_model)

    def show(self, processes: Mapping[str, int]) -> None:
        """Have the ready file, if one is asked for, contain the ids of the processes that are ready."""
        if self.made and processes != self._processes:
            self._processes = processes
            self._resources.tell_ready(processes)


def reasons(catalogue: Catalogue) -> str:
    """Why versions are not served, in one line."""
    return "; ".join(f"{key}: {refusal.reason}" for key, refusal in catalogue.refused.items())
