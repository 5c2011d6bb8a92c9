"""The ports that the server listens on. The supervisor keeps them open even while HTTP workers crash and restart."""

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

    Connections that arrive while a worker restarts wait for it. Only Linux spreads them; elsewhere workers share one
    socket, and each accepts connections from it when it can. The gRPC port is only reserved here: gRPC's library opens
    its own listening sockets, in each HTTP worker.
    """

    sockets: tuple[socket.socket, ...]
    host: str
    """The address that both ports are on: one of those that the configured name stands for."""
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
                family, port = free_port(host, settings.port)
                sockets = [held.enter_context(_listening(host, port, family))]
                for _ in range(1, settings.http_workers):
                    another = _listening(host, port, family) if portable.LINUX else sockets[0].dup()
                    sockets.append(held.enter_context(another))
            host = sockets[0].getsockname()[0]
            scheme = "https" if settings.tls_certificate else "http"
            grpc_address = None if grpc_port is None else shown(host, grpc_port)
            yield cls(tuple(sockets), host, f"{scheme}://{shown(host, port)}", grpc_port, grpc_address)

    def close(self) -> None:
        """Accept no more HTTP connections; the workers close their own copies of the sockets."""
        for listener in self.sockets:
            listener.close()


def _listening(host: str, port: int, family: socket.AddressFamily) -> socket.socket:
    return socket.create_server(
        (host, port), family=family, reuse_port=True, backlog=BACKLOG, dualstack_ipv6=_is_of_both(family)
    )


def _reserve(held: ExitStack, host: str, port: int) -> int:
    """Reserve a port without listening on it; return its number."""
    if not all(map(find_spec, ("grpc", "grpc_health", "grpc_reflection"))):
        raise StartupError(f"gRPC is not installed: {hints.install('grpc')}, or leave --grpc-port out")
    with _taking(host, port, "--grpc-port"):
        family, port = free_port(host, port)
        reserved = held.enter_context(socket.socket(family))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, port))
        if reserved.getsockname()[0] == str(IPv4Address(0)):
            _keep_from_version_6(held, port)
        return port


def _keep_from_version_6(held: ExitStack, port: int) -> None:
    """Keep gRPC's library from opening this port for IPv6, too.

    The library takes `0.0.0.0` for all addresses of IPv4 and IPv6, has no option against that, and skips addresses that
    are taken. So this takes the IPv6 port: a socket that is bound but does not listen refuses connections.
    """
    with contextlib.suppress(OSError):  # without IPv6, or if another program has the port, the library skips it anyway
        kept = held.enter_context(socket.socket(socket.AF_INET6))
        kept.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        kept.bind(("::", port))


def free_port(host: str, port: int) -> tuple[socket.AddressFamily, int]:
    """Family and number of a port that is free; 0 stands for any.

    It is bound without SO_REUSEPORT, with which a second server of the same user would share the port unnoticed.

    Raises:
        OSError, UnicodeError: the port is taken, or there is no such host.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server((host, port), family=family, dualstack_ipv6=_is_of_both(family)) as alone:
        return family, alone.getsockname()[1]


def _is_of_both(family: socket.AddressFamily) -> bool:
    """Whether a socket on `::` also accepts IPv4."""
    return family == socket.AF_INET6 and socket.has_dualstack_ipv6()


@contextlib.contextmanager
def _taking(host: str, port: int, flag: str) -> Generator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(f"cannot listen on {host} port {port}: {reason}; choose another --host or {flag}") from error


def shown(host: str, port: int) -> str:
    """Host and port as URLs and gRPC write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
