"""A request's client: the peer of its connection, or the address that trusted proxies forward."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.types import Scope

Network = IPv4Network | IPv6Network


def client_of(scope: Scope, trusted: Sequence[Network]) -> str | None:
    """The address of the client; None if the connection has none.

    Each proxy appends its peer's address to X-Forwarded-For. So the last address that is not a trusted proxy is the
    client; anything before it may be forged.
    """
    peer = scope.get("client")
    if not peer:
        return None
    address = _address(peer[0])
    if address is None:
        return str(peer[0])
    for heard_from in _forwarded(scope["headers"]):
        if not any(address in network for network in trusted):
            break
        named = _address(heard_from)
        if named is None:
            break
        address = named
    return str(address)


def _forwarded(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """The addresses of X-Forwarded-For, the newest first."""
    values = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
    return [each.strip() for each in reversed(",".join(values).split(","))] if values else []


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address, with IPv4-mapped IPv6 turned back into IPv4; None: `text` is not an address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
