"""Ctrl-C while a command is still importing ends it in one line, as `command.main` does later.

A command imports this before all else of ours.
"""

import os
import sys
from types import TracebackType

EXIT_CODE = 130
"""What shells report of a program that Ctrl-C has ended."""


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):  # which an extension may have turned into an error of its import
            print("interrupted", file=sys.stderr, flush=True)
            os._exit(EXIT_CODE)
        cause = cause.__cause__ or cause.__context__
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _report
