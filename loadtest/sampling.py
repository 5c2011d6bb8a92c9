"""Samples of a server under load: from its metrics and, if it runs on this machine, its memory."""

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil

from loadtest.processes import pss_bytes, tree

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample; None: not available."""

    images: float | None
    batches: float | None
    """both since the server's start"""
    pss_bytes: int | None
    """of all its processes, with shared pages counted once"""

    def mean_batch_since(self, before: "Sample") -> float:
        """Mean images in a batch since an earlier sample; 0 if there was no batch."""
        images = (self.images or 0) - (before.images or 0)
        batches = (self.batches or 0) - (before.batches or 0)
        return images / batches if batches > 0 else 0.0


@dataclass
class Sampler:
    """Samples the server behind a URL."""

    url: str

    def look(self) -> Sample:
        """Take a sample, which costs both sides some milliseconds."""
        text = ""
        with suppress(OSError), urlopen(f"{self.url.rstrip('/')}/metrics", timeout=_TIMEOUT_S) as answer:  # noqa: S310
            text = answer.read().decode()
        return Sample(
            _total(text, "serving_batch_size_sum"),
            _total(text, "serving_batch_size_count"),
            self._pss_bytes(),
        )

    def _pss_bytes(self) -> int | None:
        with suppress(psutil.NoSuchProcess):
            return pss_bytes(tree(self.server)) if self.server else None
        return None

    @cached_property
    def server(self) -> psutil.Process | None:
        """The supervisor, if it runs on this machine and this user may inspect it."""
        parts = urlsplit(self.url)
        if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            return None
        port = parts.port or 80
        with suppress(psutil.Error):
            for found in psutil.net_connections("tcp"):
                if found.pid and _listens(found, port):
                    return _oldest(psutil.Process(found.pid), port)
        return None


def _oldest(process: psutil.Process, port: int) -> psutil.Process:
    """The topmost ancestor that has the listening socket, too: for an HTTP worker, the supervisor."""
    for ancestor in reversed(process.parents()):
        with suppress(psutil.AccessDenied):
            if any(_listens(one, port) for one in ancestor.net_connections("tcp")):
                return ancestor
    return process


def _listens(connection: Any, port: int) -> bool:
    return bool(connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,))


def _total(text: str, name: str) -> float | None:
    """The sum of a metric's samples in Prometheus' text format, whatever their labels."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found)) if found else None
