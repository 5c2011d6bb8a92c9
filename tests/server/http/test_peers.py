"""Which address a request comes from, with and without trusted proxies."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.peers import Network, client_of

OURS = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


def client(peer: str | None, *forwarded: str, trusted: list[Network] = OURS) -> str | None:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    return client_of({"client": (peer, 1234) if peer else None, "headers": headers}, trusted)


def test_without_a_trusted_proxy_it_is_the_peer_whatever_it_says() -> None:
    assert client("203.0.113.7", "198.51.100.1") == "203.0.113.7"
    assert client("10.0.0.1", "198.51.100.1", trusted=[]) == "10.0.0.1"
    assert client(None, "198.51.100.1") is None


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        (("198.51.100.1",), "198.51.100.1"),
        (("1.2.3.4, 198.51.100.1",), "198.51.100.1"),  # the client may have written the part before it
        (("1.2.3.4", "198.51.100.1, 10.9.9.9"), "198.51.100.1"),  # over two proxies, in two fields
        (("2001:db8::1, fd00::2",), "2001:db8::1"),
        (("10.1.1.1, 10.2.2.2",), "10.1.1.1"),  # a client inside the trusted network
        (("nonsense",), "10.0.0.1"),
        (("nonsense, 10.5.5.5",), "10.5.5.5"),
        (("",), "10.0.0.1"),
        ((), "10.0.0.1"),
    ],
)
def test_a_trusted_proxy_names_the_client(forwarded: tuple[str, ...], expected: str) -> None:
    assert client("10.0.0.1", *forwarded) == expected
    assert client("::ffff:10.0.0.1", *forwarded) == expected


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=20), max_size=4))
def test_nothing_that_is_sent_makes_more_than_an_address(forwarded: list[str]) -> None:
    found = client("10.0.0.1", *forwarded)
    assert found is not None
    ip_network(found)
