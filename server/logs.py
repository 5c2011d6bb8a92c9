"""One log line, one event, on standard error, with the process that it is about."""

import logging


def configure(level: str) -> None:
    """Set up this process's logging; `level` is a name such as "info"."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(processName)-10s %(message)s")
