"""The ports of a server, taken and let go."""

import socket

import pytest

from server.errors import StartupError
from server.listeners import Listeners
from server.settings import Settings


def taken(port: int) -> bool:
    with socket.socket() as other:
        return other.connect_ex(("127.0.0.1", port)) == 0


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
