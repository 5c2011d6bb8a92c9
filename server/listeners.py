"""The ports that a server listens on. The supervisor holds them open, whatever becomes of the HTTP workers."""

import contextlib
import socket
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import IPv4Address
from typing import Self

from models import hints
from server import portable
from server.errors import StartupError
from server.settings import Settings

BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class Listeners:
    """One listening socket for each HTTP worker, all on one port: the kernel spreads connections over them.

    Connections that arrive while a worker is restarted wait for it. Only Linux spreads them; elsewhere workers share
    one socket, and each takes connections from it when it can. The port of gRPC is only kept: that library opens its
    listening sockets itself, in each HTTP worker.
    """

    sockets: tuple[socket.socket, ...]
    host: str
    """The one address that both ports are on; what was asked for may be a name that has several."""
    url: str
    grpc_port: int | None
    grpc_address: str | None
    """Host and port."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, settings: Settings) -> Generator[Self]:
        """Hold the ports until the block ends.

        Raises:
            StartupError: one cannot be had, or gRPC is not installed.
        """
        host = settings.host
        with ExitStack() as held:
            grpc_port = None if settings.grpc_port is None else _reserve(held, host, settings.grpc_port)
            with _taking(host, settings.port, "--port"):
                family, port = _free_port(host, settings.port)
                sockets = [held.enter_context(_listening(host, port, family))]
                for _ in range(1, settings.http_workers):
                    another = _listening(host, port, family) if portable.LINUX else sockets[0].dup()
                    sockets.append(held.enter_context(another))
            host = sockets[0].getsockname()[0]
            scheme = "https" if settings.tls_certificate else "http"
            grpc_address = None if grpc_port is None else shown(host, grpc_port)
            yield cls(tuple(sockets), host, f"{scheme}://{shown(host, port)}", grpc_port, grpc_address)

    def close(self) -> None:
        """Accept no more over HTTP; the workers close their own."""
        for listener in self.sockets:
            listener.close()


def _listening(host: str, port: int, family: socket.AddressFamily) -> socket.socket:
    return socket.create_server(
        (host, port), family=family, reuse_port=True, backlog=BACKLOG, dualstack_ipv6=_is_of_both(family)
    )


def _reserve(held: ExitStack, host: str, port: int) -> int:
    """Hold a port without listening; its number."""
    if not all(map(find_spec, ("grpc", "grpc_health", "grpc_reflection"))):
        raise StartupError(f"gRPC is not installed: {hints.install('grpc')}, or leave --grpc-port out")
    with _taking(host, port, "--grpc-port"):
        family, port = _free_port(host, port)
        reserved = held.enter_context(socket.socket(family))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, port))
        if reserved.getsockname()[0] == str(IPv4Address(0)):
            _keep_from_version_6(held, port)
        return port


def _keep_from_version_6(held: ExitStack, port: int) -> None:
    """Have gRPC's library open this port for IPv4 alone.

    It takes `0.0.0.0` for all addresses of both versions, no option says otherwise, and what it cannot have it leaves
    out. So it cannot have this: a socket that is bound and does not listen refuses who connects.
    """
    with contextlib.suppress(OSError):  # there is no IPv6, or another program has the port: the library gets neither
        kept = held.enter_context(socket.socket(socket.AF_INET6))
        kept.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        kept.bind(("::", port))


def _free_port(host: str, port: int) -> tuple[socket.AddressFamily, int]:
    """Alone first: SO_REUSEPORT would let a second server of the same user share the port without a word."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server((host, port), family=family, dualstack_ipv6=_is_of_both(family)) as alone:
        return family, alone.getsockname()[1]


def _is_of_both(family: socket.AddressFamily) -> bool:
    """Whether `::` is every address of IPv4 as well."""
    return family == socket.AF_INET6 and socket.has_dualstack_ipv6()


@contextlib.contextmanager
def _taking(host: str, port: int, flag: str) -> Generator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(f"cannot listen on {host} port {port}: {reason}; choose another --host or {flag}") from error


def shown(host: str, port: int) -> str:
    """An address as URLs and gRPC have it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
