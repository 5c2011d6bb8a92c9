"""What a channel promises, over real sockets."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.channel import Channel

Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    one, other = map(Channel, socket.socketpair())
    yield one, other
    one.close()
    other.close()


@given(st.lists(st.binary(max_size=400_000), max_size=8))
def test_messages_arrive_whole_and_in_order_however_long_they_are(messages: list[bytes]) -> None:
    one, other = map(Channel, socket.socketpair())
    arrived: list[bytes] = []
    for message in messages:
        one.send(message)
    while not one.flush():
        arrived += other.receive()
    arrived += other.receive()
    assert arrived == messages
    one.close()
    other.close()


def test_an_end_that_does_not_read_holds_nobody_up(ends: Ends) -> None:
    one, other = ends
    message = bytes(100_000)
    sent = 1
    while one.send(message):
        sent += 1
    assert not one.flush()
    arrived = other.receive()
    while not one.flush():
        arrived += other.receive()
    assert len(arrived + other.receive()) == sent


def test_what_was_said_before_the_end_is_heard_and_then_the_end(ends: Ends) -> None:
    one, other = ends
    one.send(b"last words")
    one.close()
    assert other.receive() == [b"last words"]
    with pytest.raises(EOFError):
        other.receive()


def test_who_speaks_to_nobody_is_not_harmed(ends: Ends) -> None:
    one, other = ends
    other.close()
    for _ in range(3):
        assert one.send(b"hello")
    with pytest.raises(EOFError):
        one.receive()


def test_silence_is_no_end(ends: Ends) -> None:
    assert ends[0].receive() == []
