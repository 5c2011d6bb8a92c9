"""Ctrl-C ends a command in one line, whenever it comes.

While a command still imports, it just ends: an exception would leave a trace, and is lost in some callbacks of Python
and of extensions. A command imports this before all else of ours.
"""

import os
import signal
import sys

EXIT_CODE = 130
"""What shells report of a program that Ctrl-C has ended."""


def _end(*_: object) -> None:
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(EXIT_CODE)


def _is_command() -> bool:
    """Whether one of this folder's files is what was started."""
    started = getattr(sys.modules["__main__"], "__file__", None)
    return started is not None and os.path.dirname(os.path.realpath(started)) == os.path.dirname(__file__)  # noqa: PTH120


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
    signal.signal(signal.SIGINT, _end)

from collections.abc import Iterator  # noqa: E402 after what these few milliseconds might see
from contextlib import contextmanager  # noqa: E402
from threading import Event  # noqa: E402


def raise_them() -> None:
    """From now on Ctrl-C is an exception, so that what was begun is cleaned up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_behind(error: BaseException) -> bool:
    """Whether it is Ctrl-C, or what an import that Ctrl-C ended has made of it."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:  # an error may be raised from itself
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(isinstance(each, KeyboardInterrupt) for each in chain)


@contextmanager
def noted() -> Iterator[Event]:
    """Note Ctrl-C instead, around what must see no exception or would lose it, and raise it afterwards.

    Raises:
        KeyboardInterrupt: there was one.
    """
    event = Event()
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
    if event.is_set():
        raise KeyboardInterrupt
