"""How a server opens and releases its ports."""

import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from server.errors import StartupError
from server.listeners import Listeners, shown
from server.settings import Settings


def taken(port: int | None, host: str = "127.0.0.1") -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as other:
        return other.connect_ex((host, port)) == 0


def test_each_worker_has_a_socket_of_its_own_on_one_port_until_the_end() -> None:
    with Listeners.open(Settings(port=0, http_workers=3)) as listeners:
        (port,) = {one.getsockname()[1] for one in listeners.sockets}
        assert len(listeners.sockets) == 3
        assert listeners.url == f"http://127.0.0.1:{port}"
        assert (listeners.grpc_port, listeners.grpc_address) == (None, None)
        assert taken(port)
    assert not taken(port)


def test_no_more_is_accepted_once_it_is_closed_while_the_port_of_grpc_is_kept() -> None:
    with Listeners.open(Settings(port=0, grpc_port=0)) as listeners:
        port = listeners.sockets[0].getsockname()[1]
        listeners.close()
        assert not taken(port)
        assert listeners.grpc_address == f"127.0.0.1:{listeners.grpc_port}"
        with (
            socket.socket() as other,
            pytest.raises(OSError, match="in use"),
        ):
            other.bind(("127.0.0.1", listeners.grpc_port or 0))


def test_what_was_taken_before_a_port_that_cannot_be_had_is_let_go() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_server(("127.0.0.1", 0)) as free:
        port, grpc_port = other.getsockname()[1], free.getsockname()[1]
        free.close()
        with (
            pytest.raises(StartupError, match=rf"cannot listen on 127.0.0.1 port {port}: .*choose another .* --port"),
            Listeners.open(Settings(port=port, grpc_port=grpc_port)),
        ):
            pass
        socket.create_server(("127.0.0.1", grpc_port)).close()


def test_an_address_of_version_6_is_shown_in_brackets() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with Listeners.open(Settings(host="::1", port=0, grpc_port=0)) as listeners:
        assert listeners.url.startswith("http://[::1]:")
        assert listeners.grpc_address == f"[::1]:{listeners.grpc_port}"


def test_the_address_of_all_interfaces_of_version_6_is_that_of_version_4_as_well() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with Listeners.open(Settings(host="::", port=0)) as listeners:
        assert taken(listeners.sockets[0].getsockname()[1])


@pytest.mark.parametrize(
    ("host", "over_4", "over_6"),
    [
        ("0.0.0.0", True, False),
        ("0", True, False),
        ("127.0.0.1", True, False),
        ("::", True, True),
        ("::1", False, True),
    ],
)
def test_grpc_listens_where_http_does_and_nowhere_else(host: str, over_4: bool, over_6: bool) -> None:
    """gRPC's library opens its sockets itself, and takes 0.0.0.0 for every address of IPv6 as well."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with ThreadPoolExecutor(1) as pool, Listeners.open(Settings(host=host, port=0, grpc_port=0)) as listeners:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 1)])
        server.add_insecure_port(shown(listeners.host, listeners.grpc_port or 0))
        server.start()
        try:
            for port in (listeners.sockets[0].getsockname()[1], listeners.grpc_port):
                assert (taken(port), taken(port, "::1")) == (over_4, over_6)
        finally:
            server.stop(None).wait()


def test_a_name_of_several_addresses_means_the_same_one_for_both_ports() -> None:
    with Listeners.open(Settings(host="localhost", port=0, grpc_port=0)) as listeners:
        assert listeners.host in ("127.0.0.1", "::1")
        assert listeners.grpc_address == shown(listeners.host, listeners.grpc_port or 0)


def test_a_port_of_all_interfaces_that_another_has_in_version_4_alone_is_not_shared() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("0.0.0.0", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match="in use"), Listeners.open(Settings(host="::", port=port)):
            pass
