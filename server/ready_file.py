"""The file that tells programs where a server that is ready listens, and which processes it has."""

import json
import logging
import os
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from server.aside import Aside

PATIENCE_S = 1.0
"""How long the end of the server waits until the file is removed: its volume may hang."""

log = logging.getLogger(__name__)


class ReadyFile:
    """Is there from when the server is ready until it ends; a JSON object, replaced as a whole.

    `url` (of HTTP), `grpc` (host and port, or null), `pid` (of the supervisor) and `processes` (ids of those children
    that are ready, by name: "engine", "http-0"). A thread writes it, so who has it written waits for no volume.
    """

    def __init__(self, path: Path) -> None:
        """Remove what a killed server has left there.

        Raises:
            OSError: it cannot be removed, or there is no such folder.
        """
        self._path = path
        path.parent.stat()
        path.unlink(missing_ok=True)
        self._aside = Aside("ready-file")
        self._newest = ""

    def write(self, url: str, grpc: str | None, processes: Mapping[str, int]) -> None:
        """Have it say so. Where it cannot be written, that is logged, and what was said before stays."""
        self._newest = json.dumps({"url": url, "grpc": grpc, "pid": os.getpid(), "processes": processes})
        self._aside.deliver()
        self._aside.call(partial(self._write, self._newest), lambda _: None)

    def remove(self) -> None:
        """The server ends."""
        self._newest = ""
        removed = threading.Event()
        self._aside.call(partial(self._remove, removed), lambda _: None)
        if not removed.wait(PATIENCE_S):
            log.warning("--ready-file %s is not removed: its volume does not answer", self._path)

    def _write(self, content: str) -> None:
        if content != self._newest:  # something newer waits
            return
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(content)
            new.replace(self._path)
        except OSError as error:
            log.warning("--ready-file %s: %s", self._path, error.strerror)

    def _remove(self, removed: threading.Event) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("--ready-file %s: %s", self._path, error.strerror)
        removed.set()
