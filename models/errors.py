"""The root of the errors that a command reports in one line, and what goes into such a line."""

from pydantic import ValidationError


class ExpectedError(Exception):
    """Something outside the program is not as it must be; the message is one line that says what, and what to do."""


def first_mistake(error: ValidationError) -> str:
    """The first of what is invalid, in one line: where, unless it is the whole, and what is wrong with it."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
