"""The file that tells programs where a server that is ready listens, and which processes it has."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


class ReadyFile:
    """Is there from when the server is ready until it ends; a JSON object, replaced as a whole.

    `url` (of HTTP), `grpc` (host and port, or null), `pid` (of the supervisor) and `processes` (ids of those children
    that are ready, by name: "engine", "http-0").
    """

    def __init__(self, path: Path) -> None:
        """Remove what a killed server has left there.

        Raises:
            OSError: it cannot be removed, or there is no such folder.
        """
        self._path = path
        path.parent.stat()
        path.unlink(missing_ok=True)

    def write(self, url: str, grpc: str | None, processes: Mapping[str, int]) -> None:
        """Say so.

        Raises:
            OSError: it cannot be written; what was said before stays.
        """
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text(json.dumps({"url": url, "grpc": grpc, "pid": os.getpid(), "processes": processes}))
        new.replace(self._path)

    def remove(self) -> None:
        """The server ends."""
        self._path.unlink(missing_ok=True)
