"""A child process, from the supervisor's side."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from unittest.mock import MagicMock

import pytest

from server.child import Child
from server.children import Children
from server.settings import Settings
from tests.server.running import PATIENCE_S


def main(control: Connection) -> None:
    """Echo every message until "be deaf", and then read no more."""
    while (message := control.recv()) != "be deaf":
        control.send(message)
    time.sleep(3600)


@contextmanager
def started(name: str) -> Generator[Child[object, object]]:
    """A child that runs `main`, and is dead after the block."""
    child = Child[object, object].start(name, Settings(), __name__)
    try:
        yield child
    finally:
        child.kill()


def test_who_hears_nothing_holds_nobody_up() -> None:
    with started("deaf") as child:
        child.tell("hello")
        assert child.control.poll(PATIENCE_S)
        assert child.hear() == "hello"
        for message in ("be deaf", *[bytes(2**20)] * 10):
            child.tell(message)
        child.stop()
        assert child.process.exitcode is not None


def test_a_child_ends_when_it_is_hung_up_on_and_has_heard_all_before() -> None:
    with started("obedient") as child:
        for number in range(100):
            child.tell(number)
        heard: list[object] = []
        while len(heard) < 100 and child.control.poll(PATIENCE_S):
            heard.append(child.hear())
        assert heard == list(range(100))
        child.stop()
        assert child.process.exitcode == 1  # its `recv` raised EOFError, which nothing caught


def test_all_children_are_stopped_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    each_other = threading.Barrier(3)
    stopping = MagicMock(stop=lambda: each_other.wait(PATIENCE_S))
    monkeypatch.setattr(Child, "start", MagicMock(return_value=stopping))
    with Children(MagicMock(settings=Settings(http_workers=2))) as children:
        for name in ("http-0", "http-1"):
            children.start_worker(name, MagicMock())
        children.start_engine(MagicMock(), [])
