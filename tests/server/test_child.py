"""A child process as the supervisor has it."""

import time
from multiprocessing.connection import Connection

from server.child import STOP_S, Child
from server.settings import Settings


def main(control: Connection) -> None:
    """Say what comes until "be deaf" does, and then hear nothing more."""
    while (message := control.recv()) != "be deaf":
        control.send(message)
    time.sleep(3600)


def test_who_hears_nothing_holds_nobody_up() -> None:
    child = Child[object, object].start("deaf", Settings(), __name__)
    child.tell("hello")
    assert child.control.poll(STOP_S)
    assert child.hear() == "hello"
    for message in ("be deaf", *[bytes(2**20)] * 10):
        child.tell(message)
    child.stop()
    assert child.process.exitcode is not None


def test_a_child_ends_when_it_is_hung_up_on_and_has_heard_all_before() -> None:
    child = Child[object, object].start("obedient", Settings(), __name__)
    for number in range(100):
        child.tell(number)
    heard: list[object] = []
    while len(heard) < 100 and child.control.poll(STOP_S):
        heard.append(child.hear())
    assert heard == list(range(100))
    child.stop()
    assert child.process.exitcode == 1  # its `recv` met the end, and nobody caught that
