"""Shared-memory slots, in one process and across two."""

import multiprocessing
from multiprocessing.connection import Connection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.slots import Slots


def test_new_slots_are_not_running() -> None:
    assert Slots(3, 12).running.tolist() == [False] * 3


@given(count=st.integers(1, 200), height=st.integers(1, 9), width=st.integers(1, 9))
def test_flags_and_pixels_of_all_slots_do_not_overlap(count: int, height: int, width: int) -> None:
    shape = (height, width, 3)
    slots = Slots(count, height * width * 3)
    for slot in range(count):
        slots.pixels(slot, shape)[...] = slot + 1
        slots.running[slot] = slot % 3 == 0
    assert all((slots.pixels(slot, shape) == slot + 1).all() for slot in range(count))
    assert slots.running.tolist() == [slot % 3 == 0 for slot in range(count)]


def test_a_smaller_shape_shares_the_slot() -> None:
    slots = Slots(2, 48)
    slots.pixels(1, (4, 4, 3))[...] = 9
    assert slots.pixels(1, (2, 2, 3)).tolist() == np.full((2, 2, 3), 9).tolist()


def test_a_shape_that_does_not_fit_is_refused() -> None:
    slots = Slots(2, 12)
    assert slots.pixels(0, (2, 2, 3)).nbytes == 12
    with pytest.raises(ValueError, match="does not fit a slot of 12 bytes"):
        slots.pixels(0, (2, 3, 3))


def other_process(slots: Slots, control: Connection) -> None:
    """Answer with what is in slot 1, then write slot 2 and mark it."""
    control.send((slots.pixels(1, (2, 2, 3)).tolist(), slots.running.tolist()))
    slots.pixels(2, (2, 2, 3))[...] = 77
    slots.running[2] = True


def test_another_process_sees_the_same_memory_and_does_not_take_it_along_when_it_ends() -> None:
    slots = Slots(3, 12)
    slots.pixels(1, (2, 2, 3))[...] = 55
    slots.running[0] = True
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=other_process, args=(slots, theirs), daemon=True)
    process.start()
    try:
        with ours, theirs:
            assert ours.recv() == (np.full((2, 2, 3), 55).tolist(), [True, False, False])
        process.join()
    finally:
        process.kill()
    assert process.exitcode == 0
    assert (slots.pixels(2, (2, 2, 3)) == 77).all()
    assert slots.running.tolist() == [True, False, True]
