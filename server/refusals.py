"""Why a model is not served, and so what becomes of it: a cause, a reason, and when to try again."""

import re
from enum import StrEnum
from typing import NamedTuple, Self, assert_never

from models.manifest import UnreadableError

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
"""Wait before the second attempt, which doubles with each; and the most that it comes to."""

_EXHAUSTED = re.compile(
    "bad.alloc|out of memory|not enough memory|(cannot|can't|could not|failed to|unable to) allocate"
    "|alloc_failed|resource temporarily unavailable|can't start new thread|device.* (busy|unavailable)",
    re.IGNORECASE,
)
"""What runtimes say where memory, threads or a device are not to be had: none has an exception of its own for that."""


class Cause(StrEnum):
    """What kind of reason it is."""

    NEVER = "never"
    """A digest, a schema, a graph: refused until its files change, or somebody asks for it."""
    NOT_NOW = "not_now"
    """A file that cannot be read, memory or a device that is not to be had: tried again without end."""


class Refusal(NamedTuple):
    """One model or ensemble is not served."""

    cause: Cause
    reason: str
    """For people."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """What an attempt to read or load a model ended with."""
        passing = isinstance(error, UnreadableError | OSError | MemoryError) or _EXHAUSTED.search(str(error))
        return cls(Cause.NOT_NOW if passing else Cause.NEVER, str(error) or type(error).__name__)

    @property
    def is_tried_again(self) -> bool:
        """Whether it may be served later although nobody changes anything."""
        match self.cause:
            case Cause.NEVER:
                return False
            case Cause.NOT_NOW:
                return True
            case _:
                assert_never(self.cause)


def delay_s(attempts: int) -> float:
    """How long to wait after so many attempts that failed in a row, at least one."""
    return min(FIRST_DELAY_S * 2.0 ** min(attempts - 1, 32), LONGEST_DELAY_S)
