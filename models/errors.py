"""The root of the errors that a command reports in one line."""


class ExpectedError(Exception):
    """Something outside the program is not as it must be; the message is one line that says what, and what to do."""
