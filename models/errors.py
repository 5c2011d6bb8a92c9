"""Base class of the errors that a command reports in one line, and helpers to write that line."""

from pydantic import ValidationError


class ExpectedError(Exception):
    """The user's input or environment is at fault; the message is one line that says what is wrong and what to do."""


def first_mistake(error: ValidationError) -> str:
    """Return the first validation error in one line, after the invalid field's name if there is one."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    mistake = first["msg"].removeprefix("Value error, ")
    return f"{where}: {mistake}" if where else mistake


def first_line(error: BaseException) -> str:
    """Shorten what a library reports to one line; an error without a message is named by its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
