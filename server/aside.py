"""A thread for calls that may hang, such as reads of files on a network."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

Done = TypeVar("Done")


def fulfil(future: Future[Done], function: Callable[[], Done]) -> None:
    """Give a future the outcome of a call."""
    try:
        future.set_result(function())
    except Exception as error:  # raised again where the result is asked for
        future.set_exception(error)


class Aside:
    """One thread that makes calls one after the other; its owner waits for `bell` and collects the results.

    The thread ends with the process: a call that hangs cannot be interrupted.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._ended: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._left = 0
        self.bell, self._rope = socket.socketpair()
        """Becomes readable once a call has ended."""
        self.bell.settimeout(0)
        self._rope.settimeout(0)
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def idle(self) -> bool:
        """Whether all calls have ended and were delivered."""
        return not self._left

    def call(self, function: Callable[[], Done], then: Callable[[Future[Done]], None]) -> None:
        """Call `function` in the thread; once it has ended, `deliver` passes its outcome to `then`."""

        def make() -> None:
            future: Future[Done] = Future()
            fulfil(future, function)
            self._ended.put(lambda: then(future))

        self._left += 1
        self._calls.put(make)

    def deliver(self) -> None:
        """Pass on the outcomes of the calls that have ended."""
        with suppress(BlockingIOError):
            self.bell.recv(4096)
        while not self._ended.empty():
            self._left -= 1
            self._ended.get()()

    def _run(self) -> None:
        while True:
            self._calls.get()()
            with suppress(OSError):  # full of rings already, or the process ends
                self._rope.send(b"!")
