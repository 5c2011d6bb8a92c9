"""The ready file: tells other programs where the ready server listens, and which processes it has."""

import json
import logging
import os
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from server.aside import Aside

PATIENCE_S = 1.0
"""How long the ending server waits for the file to be removed: its volume may hang."""

log = logging.getLogger(__name__)


class ReadyFile:
    """A file with a JSON object. It exists from when the server is ready until it ends, and is replaced as a whole.

    It has `url` (of HTTP), `grpc` (host and port, or null), `pid` (of the supervisor) and `processes` (process ids of
    the ready children by name: "engine", "http-0"). A thread writes it, so that a volume that hangs blocks no caller.
    """

    def __init__(self, path: Path) -> None:
        """Remove the file that a killed server may have left.

        Raises:
            OSError: it cannot be removed, or its folder does not exist.
        """
        self._path = path
        path.parent.stat()
        path.unlink(missing_ok=True)
        self._aside = Aside("ready-file")
        self._newest = ""

    def write(self, url: str, grpc: str | None, processes: Mapping[str, int]) -> None:
        """Have the file written. If that fails, the failure is logged and the old contents stay."""
        self._newest = json.dumps({"url": url, "grpc": grpc, "pid": os.getpid(), "processes": processes})
        self._aside.deliver()
        self._aside.call(partial(self._write, self._newest), lambda _: None)

    def remove(self) -> None:
        """Remove the file, as the server ends."""
        self._newest = ""
        removed = threading.Event()
        self._aside.call(partial(self._remove, removed), lambda _: None)
        if not removed.wait(PATIENCE_S):
            log.warning("--ready-file %s is not removed: its volume does not respond", self._path)

    def _write(self, content: str) -> None:
        if content != self._newest:  # a newer write is waiting
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
