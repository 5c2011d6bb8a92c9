"""Open files that the system allows a process: each connection is one."""

import contextlib
import logging
import resource

from server.errors import StartupError
from server.settings import Settings

OTHERS = 256
"""Files, sockets and pipes of an HTTP worker beside its connections."""

OPEN_MAX = 10_240
"""Files that every macOS allows a process (setrlimit(2) there)."""

log = logging.getLogger(__name__)


def provide(settings: Settings) -> Settings:
    """Raise the limit for this process and its children to what `max_connections` needs.

    An HTTP worker answers up to twice that many before it closes any, and has as many again over gRPC. If the system
    allows fewer, `max_connections` is lowered, so that what is too much is refused with its code, rather than never
    accepted and without a word.

    Raises:
        StartupError: the limit has no room for connections at all.
    """
    each = 2 if settings.grpc_port is None else 3
    needed = each * settings.max_connections + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        allowed = _raised(allowed, soft, hard)
    if allowed == needed:
        return settings
    fitting = (allowed - OTHERS) // each
    if fitting < 1:
        raise StartupError(f"only {allowed} open files are allowed (ulimit -Hn): at least {OTHERS + each} are needed")
    log.warning(
        "max_connections is %d, not %d: %d open files are allowed (ulimit -Hn), which takes %d",
        fitting,
        settings.max_connections,
        allowed,
        needed,
    )
    return settings.model_copy(update={"max_connections": fitting})


def _raised(wanted: int, soft: int, hard: int) -> int:
    """The limit that is in force then: macOS names no hard limit, and refuses more than it allows a process."""
    for limit in (wanted, min(wanted, OPEN_MAX)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, soft), hard))
            return max(limit, soft)
    return soft
