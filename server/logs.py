"""Logging to standard error: one line per event, with the process's name, as text, or as JSON for programs."""

import json
import logging
import os
import queue
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing import current_process
from pathlib import Path
from typing import Any, Literal, TypeVarTuple

BURST = 20
"""Most warnings from one place in the code that are printed within `BURST_S`."""
BURST_S = 60.0
MAX_WAITING = 10_000
"""Most lines of one process that wait to be printed, while nobody reads standard error."""
FLUSH_S = 1.0
"""How long an ending process waits for its lines to be printed."""

Arguments = TypeVarTuple("Arguments")

log = logging.getLogger(__name__)


def configure(level: str, form: Literal["text", "json"] = "text") -> None:
    """Set up this process's logging, unless it is set up already; `level` is a name such as "info"."""
    if logging.getLogger().handlers:
        return
    # The parent process may have closed standard error.
    handler = Printer(sys.stderr.fileno() if sys.stderr else os.open(os.devnull, os.O_WRONLY))
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if form == "json":  # every line must be JSON: those of warnings and uncaught errors, too
        logging.captureWarnings(capture=True)
        sys.excepthook = lambda kind, error, trace: log.critical("an error ends it", exc_info=(kind, error, trace))


def run(
    level: str, form: Literal["text", "json"], target: Callable[[*Arguments], None], *arguments: *Arguments
) -> None:
    """Run a child process: call `target(*arguments)`, log its failure, and exit.

    The process exits without waiting for its threads, such as one that runs a batch that hangs, or loads a model.
    """
    configure(level, form)
    with suppress(OSError):  # only Linux has this file
        Path("/proc/self/comm").write_text(current_process().name)  # the name that ps and top show
    code = 0
    try:
        target(*arguments)
    except Exception:
        log.critical("%s fails", current_process().name, exc_info=True)
        code = 1
    flush()
    os._exit(code)


def flush() -> None:
    """Wait until all lines are printed, or until it is clear that nobody reads them."""
    for handler in logging.getLogger().handlers:
        handler.flush()


class Printer(logging.Handler):
    """Prints in a thread of its own, as a write blocks while nobody reads and the pipe is full.

    Up to `MAX_WAITING` lines wait; further ones are lost, and the next line that is printed says how many.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self._lost = 0
        threading.Thread(target=self._print, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        if self._lost:
            add_fields(record, lost=self._lost)
        try:
            self._lines.put_nowait(f"{self.format(record)}\n")
        except queue.Full:
            self._lost += 1
        else:
            self._lost = 0

    def flush(self) -> None:
        """Wait until all lines are printed, for `FLUSH_S` at most."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, FLUSH_S)

    def _print(self) -> None:
        while True:
            left = self._lines.get().encode(errors="backslashreplace")
            with suppress(OSError):  # the reader is gone
                while left:
                    try:
                        left = left[os.write(self._descriptor, left) :]
                    except BlockingIOError:  # another process that shares the pipe has made it non-blocking
                        select.select([], [self._descriptor], [])
            self._lines.task_done()


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Fields of a line besides its text, as the argument `extra`; None values are left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def bound_bursts() -> None:
    """Have this process print at most `BURST` warnings of one kind within `BURST_S`, as clients can cause them."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(Bursts())


class Bursts(logging.Filter):
    """Drops warnings over the limit; the next one that is printed says how many."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}  # by place in the code: start of the interval, count

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
    """Add fields to a line."""
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
            "time": time.replace("+00:00", "Z"),  # RFC 3339 allows both; some readers accept only this one
            "level": record.levelname.lower(),
            "process": record.processName,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
