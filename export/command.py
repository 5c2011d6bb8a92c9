"""How every command of this folder ends: with exit code 0, or with one line on standard error."""

import sys
from collections.abc import Callable

from models.errors import ExpectedError


def run(action: Callable[[], None]) -> int:
    """Do it; 0 is success, 1 an error that was reported in one line, 130 an interrupt."""
    try:
        action()
    except ExpectedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
