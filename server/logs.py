"""One log line, one event, on standard error, with the process that it is about: text, or JSON for programs."""

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing import current_process
from pathlib import Path
from typing import Any, Literal, TypeVarTuple

BURST = 20
"""Warnings of one place in the code that are printed in each `BURST_S`."""
BURST_S = 60.0

Arguments = TypeVarTuple("Arguments")

log = logging.getLogger(__name__)


def configure(level: str, form: Literal["text", "json"] = "text") -> None:
    """Set up this process's logging, unless that is done; `level` is a name such as "info"."""
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if form == "json":  # whoever reads the lines expects nothing else
        logging.captureWarnings(capture=True)
        sys.excepthook = lambda kind, error, trace: log.critical("an error ends it", exc_info=(kind, error, trace))


def run(
    level: str, form: Literal["text", "json"], target: Callable[[*Arguments], None], *arguments: *Arguments
) -> None:
    """The life of a child process: `target(*arguments)`, whose failure is logged like all else.

    It ends without waiting for its threads: a batch that hangs, a model that loads, a decoder that nobody waits for.
    """
    configure(level, form)
    with suppress(OSError):  # where there is no such file
        Path("/proc/self/comm").write_text(current_process().name)  # which ps and top show
    try:
        target(*arguments)
    except Exception:
        log.critical("%s fails", current_process().name, exc_info=True)
        os._exit(1)
    os._exit(0)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """What a line has beside its text, as the argument `extra`; what is None is left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def bound_bursts() -> None:
    """Have this process print no more than `BURST` warnings of one kind in `BURST_S`: clients can cause them."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(Bursts())


class Bursts(logging.Filter):
    """Leaves out what is over the limit; the next line that is not tells how many those were."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}  # by place in the code: since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print this one."""
        if record.levelno < logging.WARNING:
            return True
        place = record.pathname, record.lineno
        begun_s, count = self._seen.get(place, (record.created, 0))
        if not 0 <= record.created - begun_s < BURST_S:
            if count > BURST:
                add_fields(record, left_out=count - BURST)
            begun_s, count = record.created, 0
        self._seen[place] = begun_s, count + 1
        return count < BURST


def add_fields(record: logging.LogRecord, **values: object) -> None:
    """Give a line more of what it has beside its text."""
    record.fields = {**_fields(record), **values}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = getattr(record, "fields", {})
    return found


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(processName)-10s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return " ".join(
            [super().formatMessage(record), *(f"{name}={value}" for name, value in _fields(record).items())]
        )


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        line = {
            "time": time.replace("+00:00", "Z"),  # RFC 3339 has both, and some readers only know this one
            "level": record.levelname.lower(),
            "process": record.processName,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
