"""Why a model is not served: the cause, the reason, and when the server tries again."""

import re
from enum import StrEnum
from typing import NamedTuple, Self, assert_never

from models.manifest import UnreadableError

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
"""Wait before the second attempt, which doubles with each further one, and its maximum."""

_EXHAUSTED = re.compile(
    "bad.alloc|out of memory|not enough memory|(cannot|can't|could not|failed to|unable to) allocate"
    "|alloc_failed|resource temporarily unavailable|can't start new thread|device.* (busy|unavailable)",
    re.IGNORECASE,
)
"""Messages of runtimes that lack memory, threads or a device, for which none of them has an exception of its own."""


class Cause(StrEnum):
    """Whether it makes sense to try again."""

    NEVER = "never"
    """A wrong digest, schema or graph: refused until its files change, or a client asks to load it."""
    NOT_NOW = "not_now"
    """A file that cannot be read, or memory or a device that is not available: the server keeps trying."""


class Refusal(NamedTuple):
    """Why one model or recipe is not served."""

    cause: Cause
    reason: str
    """For people."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """The refusal for an error that reading or loading a model raised."""
        passing = isinstance(error, UnreadableError | OSError | MemoryError) or _EXHAUSTED.search(str(error))
        return cls(Cause.NOT_NOW if passing else Cause.NEVER, printable(str(error)) or type(error).__name__)

    @property
    def is_tried_again(self) -> bool:
        """Whether the server tries again without any change to the model's files."""
        match self.cause:
            case Cause.NEVER:
                return False
            case Cause.NOT_NOW:
                return True
            case _:
                assert_never(self.cause)


def delay_s(attempts: int) -> float:
    """How long to wait after this many failed attempts in a row, at least one."""
    return min(FIRST_DELAY_S * 2.0 ** min(attempts - 1, 32), LONGEST_DELAY_S)


def printable(text: str) -> str:
    """The text with the bytes of file names that are not UTF-8 written out, so that it can be sent and logged."""
    return text.encode(errors="backslashreplace").decode()
