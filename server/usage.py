"""The API keys' use of their limits: a table in a mapped file that all HTTP workers share."""

import contextlib
import fcntl
import os
import weakref
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = Any
"""A view on a row: `sha256` (of the key, in hexadecimal), `full_s` (when its burst is fully available again, by the
monotonic clock, which all processes of a machine share) and `running` (uint32[workers], requests under way in each)."""


class Usage:
    """One process's access to the table. One lock, held for some microseconds, guards all rows.

    The kernel releases the lock however a process dies. The whole file is written at the start, so that counting never
    needs room on a full disk.
    """

    def __init__(self, path: Path, rows: int, workers: int) -> None:
        """Open the table, which the supervisor creates before any HTTP worker opens it.

        Raises:
            OSError: there is no room.
        """
        kind = np.dtype([("sha256", "S64"), ("full_s", np.float64), ("running", np.uint32, (workers,))])
        if not path.exists():
            path.write_bytes(bytes(rows * kind.itemsize))
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # a child that inherited it would share the lock
        weakref.finalize(self, os.close, self._file)
        self._table = np.memmap(path, kind, "r+", shape=(rows,))

    def keep(self, digests: Sequence[str]) -> None:
        """Keep a row for each of these SHA-256 digests, existing ones unchanged, and drop all others."""
        asked = np.array(digests, "S64")
        with self._locked():
            known = self._table["sha256"]
            self._table[~np.isin(known, asked)] = np.zeros((), self._table.dtype)
            new = asked[~np.isin(asked, known)]
            known[np.flatnonzero(known == b"")[: len(new)]] = new

    def clear(self, worker: int) -> None:
        """Zero the requests under way of a worker that has ended."""
        with self._locked():
            self._table["running"][:, worker] = 0

    @contextlib.contextmanager
    def of(self, digest: str) -> Generator[Row | None]:
        """The row of a key's SHA-256, locked for the caller; None if it is no longer kept."""
        with self._locked():
            found = np.flatnonzero(self._table["sha256"] == digest.encode())
            yield self._table[found[0]] if len(found) else None

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
