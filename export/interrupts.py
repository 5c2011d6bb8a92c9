"""Ctrl-C ends a command with one line, whenever it comes.

While a command still imports, Ctrl-C ends the process at once: an exception would print a traceback, or get lost in
some callbacks of Python and of extensions. A command imports this module before the rest of our code.
"""

import os
import signal
import sys

EXIT_CODE = 130
"""The exit code that shells report for a program ended by Ctrl-C."""


def _end(*_: object) -> None:
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(EXIT_CODE)


def _is_command() -> bool:
    """Whether this process was started with one of this folder's files."""
    started = getattr(sys.modules["__main__"], "__file__", None)
    return started is not None and os.path.dirname(os.path.realpath(started)) == os.path.dirname(__file__)  # noqa: PTH120


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored
    signal.signal(signal.SIGINT, _end)

from collections.abc import Iterator  # noqa: E402 Ctrl-C may come during these imports, too
from contextlib import contextmanager  # noqa: E402
from threading import Event  # noqa: E402


def raise_them() -> None:
    """Make Ctrl-C raise an exception from now on, so that unfinished work is cleaned up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_behind(error: BaseException) -> bool:
    """Whether an error is Ctrl-C, or was caused by it, as in an import that it ended."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:  # an error may be raised from itself
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(isinstance(each, KeyboardInterrupt) for each in chain)


@contextmanager
def noted() -> Iterator[Event]:
    """Set an event on Ctrl-C, around code that must not see an exception or would lose it, and raise it afterwards.

    Raises:
        KeyboardInterrupt: there was a Ctrl-C.
    """
    event = Event()
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
    if event.is_set():
        raise KeyboardInterrupt
