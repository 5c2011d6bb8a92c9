"""The system's limit on open files per process: each connection takes one."""

import contextlib
import logging
import resource

from server.errors import StartupError
from server.settings import Settings

OTHERS = 256
"""Files, sockets and pipes of an HTTP worker besides its connections."""

OPEN_MAX = 10_240
"""Open files that every macOS allows a process (its setrlimit(2))."""

log = logging.getLogger(__name__)


def needed(settings: Settings) -> int:
    """Open files of an HTTP worker with all its connections.

    It holds up to twice `max_connections` over HTTP before it closes any, and that many over gRPC.
    """
    return _each(settings) * settings.max_connections + OTHERS


def provide(settings: Settings) -> Settings:
    """Raise the limit for this process and its children to what `max_connections` needs.

    If the system allows fewer files, `max_connections` is lowered, so that clients beyond it get an error code instead
    of waiting for ever to be accepted.

    Raises:
        StartupError: the limit leaves no room for any connection.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed(settings) if hard == resource.RLIM_INFINITY else min(needed(settings), hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        allowed = _raised(allowed, soft, hard)
    if allowed == needed(settings):
        return settings
    fitting = (allowed - OTHERS) // _each(settings)
    if fitting < 1:
        least = OTHERS + _each(settings)
        raise StartupError(f"only {allowed} open files are allowed (ulimit -Hn): at least {least} are needed")
    log.warning(
        "max_connections is %d, not %d: %d open files are allowed (ulimit -Hn), which takes %d",
        fitting,
        settings.max_connections,
        allowed,
        needed(settings),
    )
    return settings.model_copy(update={"max_connections": fitting})


def _each(settings: Settings) -> int:
    return 2 if settings.grpc_port is None else 3


def _raised(wanted: int, soft: int, hard: int) -> int:
    """Raise the soft limit; return the limit now in force. macOS reports no hard limit, but may refuse a high one."""
    for limit in (wanted, min(wanted, OPEN_MAX)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, soft), hard))
            return max(limit, soft)
    return soft
