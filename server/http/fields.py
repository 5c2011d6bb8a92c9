"""The header fields of a request, indexed once: Starlette scans all of them on every lookup."""

from collections.abc import Mapping

from starlette.types import Scope


def field(scope: Scope, name: bytes) -> str | None:
    """The value of the field with this lower-case name; None: there is none.

    Several lines of one field are one list (RFC 9110, 5.3).
    """
    state = scope.setdefault("state", {})
    found: Mapping[bytes, bytes] | None = state.get("fields")
    if found is None:
        lines = scope["headers"]
        found = dict(lines)
        if len(found) < len(lines):
            found = {each: b", ".join(value for other, value in lines if other == each) for each in found}
        state["fields"] = found
    value = found.get(name)
    return None if value is None else value.decode("latin-1")
