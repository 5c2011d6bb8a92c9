"""One log line, one event, on standard error, with the process that it is about: text, or JSON for programs."""

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
"""Warnings of one place in the code that are printed in each `BURST_S`."""
BURST_S = 60.0
MAX_WAITING = 10_000
"""Lines of one process that wait for whoever reads them."""
FLUSH_S = 1.0
"""How long a process that ends waits for that."""

Arguments = TypeVarTuple("Arguments")

log = logging.getLogger(__name__)


def configure(level: str, form: Literal["text", "json"] = "text") -> None:
    """Set up this process's logging, unless that is done; `level` is a name such as "info"."""
    if logging.getLogger().handlers:
        return
    # Whoever started us may have closed it.
    handler = Printer(sys.stderr.fileno() if sys.stderr else os.open(os.devnull, os.O_WRONLY))
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
    code = 0
    try:
        target(*arguments)
    except Exception:
        log.critical("%s fails", current_process().name, exc_info=True)
        code = 1
    flush()
    os._exit(code)


def flush() -> None:
    """Wait until what was logged is printed, unless nobody reads it."""
    for handler in logging.getLogger().handlers:
        handler.flush()


class Printer(logging.Handler):
    """Prints in a thread of its own: whoever reads the lines may have stopped, and the pipe be full.

    Lines wait for him, up to `MAX_WAITING`; the next one that is printed then tells how many were lost.
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
                    except BlockingIOError:  # some other process with the same pipe wants it so
                        select.select([], [self._descriptor], [])
            self._lines.task_done()


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
