"""The engine's connections to the HTTP workers, and the wait for all that its loop reacts to."""

import select
import socket
from collections import defaultdict
from collections.abc import Iterable

from server import portable
from server.engine.channel import Channel
from server.engine.messages import Reply, encode

GATHER_S = 0.005
"""How long to let requests gather in the sockets while no batch can start: each poll costs more than one request."""


class Connections:
    """One channel for each HTTP worker that has connected to the listener."""

    def __init__(self, listener: socket.socket, urgent: Iterable[int]) -> None:
        """`urgent` are other descriptors to wait for; unlike requests, events on them are never left to gather."""
        self._channels: dict[int, Channel] = {}  # by descriptor
        self._listener = listener
        self._poll = portable.poller()
        self._urgent = portable.poller()  # the same without the HTTP workers
        for source in (listener.fileno(), *urgent):
            self._poll.register(source, select.POLLIN)
            self._urgent.register(source, select.POLLIN)

    def wait(self, seconds: float, *, busy: bool) -> list[tuple[int, int]]:
        """The descriptors with events, after at most `seconds`; requests may gather while the engine is `busy`."""
        found = self._poll.poll(seconds)
        if found and busy and all(source in self._channels for source, _ in found):
            self._urgent.poll(GATHER_S)
            found = self._poll.poll(0)
        return found

    def ready(self, source: int, events: int) -> Channel | None:
        """The channel to read from after these events, if the descriptor is a channel's; accepts new HTTP workers."""
        if source == self._listener.fileno():
            worker = Channel(self._listener.accept()[0])
            self._channels[worker.fileno()] = worker
            self._poll.register(worker.fileno(), select.POLLIN)
            return None
        worker = self._channels[source]
        if events & select.POLLOUT and worker.flush():
            self._poll.modify(source, select.POLLIN)
        return worker

    def close(self, worker: Channel) -> None:
        """Forget an HTTP worker that has ended."""
        del self._channels[worker.fileno()]
        self._poll.unregister(worker.fileno())
        worker.close()

    def send(self, replies: Iterable[tuple[Channel, Reply]]) -> None:
        """Send one message to each HTTP worker that is still connected."""
        by_owner: dict[Channel, list[Reply]] = defaultdict(list)
        for owner, reply in replies:
            by_owner[owner].append(reply)
        for owner, together in by_owner.items():
            if owner in self._channels.values() and not owner.send(encode(together)):
                self._poll.modify(owner.fileno(), select.POLLIN | select.POLLOUT)
