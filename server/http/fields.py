"""The header fields of a request, indexed once: Starlette scans all of them on every lookup."""

from collections.abc import Mapping

from starlette.types import Scope


def field(scope: Scope, name: bytes) -> str | None:
    """The first field with this lower-case name; None: there is none."""
    state = scope.setdefault("state", {})
    found: Mapping[bytes, bytes] | None = state.get("fields")
    if found is None:
        found = state["fields"] = dict(reversed(scope["headers"]))
    value = found.get(name)
    return None if value is None else value.decode("latin-1")
