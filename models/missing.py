"""Report a missing package in one line. Commands import this module before any package that may be missing."""

import sys
import traceback
from pathlib import Path
from types import TracebackType

from models import hints


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Stand in for `sys.excepthook`: one line if our code imports a missing third-party package, else a traceback."""
    if isinstance(error, ModuleNotFoundError) and error.name and _is_of_others(error.name) and _is_by_us(trace):
        print(f"error: {hints.missing(error.name)}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _is_of_others(module: str) -> bool:
    return module.partition(".")[0] not in hints.PACKAGES


def _is_by_us(trace: TracebackType | None) -> bool:
    last = Path(traceback.extract_tb(trace)[-1].filename)
    return last.is_relative_to(hints.ROOT) and last.relative_to(hints.ROOT).parts[0] in hints.PACKAGES


sys.excepthook = _tell
