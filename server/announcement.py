"""Tells people and programs that the server is ready, and what it serves: in the log and in the ready file."""

import logging
from collections.abc import Mapping

from server.repository import Catalogue
from server.resources import Resources

log = logging.getLogger(__name__)


class Announcement:
    """Made once: when all processes are ready and there is a model to serve."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._processes: Mapping[str, int] = {}
        self.made = False
        """Whether the server was announced as ready; from then on, it is at most out of service for a while."""

    def make(self, catalogue: Catalogue, unloaded: int) -> None:
        """Announce the server, all of whose processes are ready, if it has models; `unloaded` of these are not loaded.

        If it has none, a warning says why.
        """
        listeners = self._resources.listeners
        if not catalogue.entries:
            log.warning("listening on %s, and not ready: %s; trying again", listeners.url, reasons(catalogue))
            return
        self.made = True
        for key, found in catalogue.entries.items():
            default = " (default)" if key.name == catalogue.default_model else ""
            random = any(member.manifest.weights.random for member in catalogue.members(found))
            warning = ": RANDOM WEIGHTS, its answers mean nothing" if random else ""
            log.info("serving %s%s%s", key, default, warning)
        for key, refusal in catalogue.refused.items():
            log.warning("not serving %s: %s", key, refusal.reason)
        if catalogue.default_model is None:
            log.warning("requests that name no model are refused: set --default-model to the model that they mean")
        if listeners.grpc_address:
            log.info("gRPC on %s", listeners.grpc_address)
        log.info("ready on %s", listeners.url)
        if unloaded:
            log.info("%d models are not loaded until requests name them", unloaded)

    def show(self, processes: Mapping[str, int]) -> None:
        """Have the ready file, if one is asked for, contain the ids of the processes that are ready."""
        if self.made and processes != self._processes:
            self._processes = processes
            self._resources.tell_ready(processes)


def log_change(catalogue: Catalogue, before: Catalogue) -> None:
    """Log which models requests may name from now on, and which not any more."""
    log.info("serving %s", ", ".join(map(str, catalogue.entries)) or "nothing")
    for key, refusal in catalogue.refused.items():
        if before.refused.get(key) != refusal:
            log.warning("not serving %s: %s", key, refusal.reason)
    if catalogue.default_model != before.default_model:
        log.warning("requests that name no model now mean %s", catalogue.default_model)


def reasons(catalogue: Catalogue) -> str:
    """Why versions are not served, in one line."""
    return "; ".join(f"{key}: {refusal.reason}" for key, refusal in catalogue.refused.items())
