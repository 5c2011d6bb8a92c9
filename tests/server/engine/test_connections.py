"""An engine's end of the connections to HTTP workers, over real sockets; nothing here waits for a time."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import portable
from server.engine.channel import Channel
from server.engine.connections import Connections
from server.engine.messages import Answer, Dropped, decode_replies

PATIENCE_S = 30.0


class Connected:
    """A bell, connections that also wait for it, and one HTTP worker's end."""

    def __init__(self, listener: socket.socket, worker: socket.socket) -> None:
        self.bell = portable.Bell()
        self.connections = Connections(listener, [self.bell.fileno()])
        self.worker = Channel(worker)
        assert self.turn() == []

    def turn(self, *, busy: bool = False) -> list[Channel]:
        """Wait once; the channels to read from then."""
        events = self.connections.wait(PATIENCE_S, busy=busy)
        ready = [self.connections.ready(*each) for each in events if each[0] != self.bell.fileno()]
        return [channel for channel in ready if channel]


@pytest.fixture
def connected(tmp_path: Path) -> Iterator[Connected]:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as worker:
        listener.bind(str(tmp_path / "engine"))
        listener.listen()
        worker.connect(str(tmp_path / "engine"))
        found = Connected(listener, worker)
        try:
            yield found
        finally:
            found.worker.close()
            found.bell.ring()  # so that `turn` returns even if there is no channel left
            for channel in found.turn():
                found.connections.close(channel)


@pytest.mark.parametrize("busy", [False, True])
def test_an_http_worker_is_heard_and_answered_until_it_ends(connected: Connected, *, busy: bool) -> None:
    connected.worker.send(b"a request")
    (channel,) = connected.turn(busy=busy)
    assert channel.receive() == [b"a request"]
    connected.connections.send([(channel, Dropped(1)), (channel, Dropped(2))])
    assert [decode_replies(each) for each in connected.worker.receive()] == [[Dropped(1), Dropped(2)]]
    connected.worker.close()
    assert connected.turn(busy=busy) == [channel]
    with pytest.raises(EOFError):
        channel.receive()
    connected.connections.close(channel)
    connected.connections.send([(channel, Dropped(3))])  # nobody gets it
    assert connected.connections.wait(0, busy=busy) == []


def test_an_http_worker_that_is_behind_gets_the_rest_once_it_reads(connected: Connected) -> None:
    connected.worker.send(b"a request")
    (channel,) = connected.turn()
    channel.receive()
    long = [Answer(number, bytes(2**20), b"", b"", 0.0, 0.0, 1) for number in range(4)]
    connected.connections.send((channel, answer) for answer in long)
    received: list[bytes] = []
    while not received:
        received = connected.worker.receive()
        connected.turn(busy=True) if not received else None
    assert [decode_replies(each) for each in received] == [long]


def test_an_urgent_event_ends_the_gathering_of_requests(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.connections.GATHER_S", 3600.0)
    connected.worker.send(b"a request")
    connected.bell.ring()
    events = dict(connected.connections.wait(PATIENCE_S, busy=True))
    assert connected.bell.fileno() in events
    assert len(events) == 2
