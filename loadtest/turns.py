"""Measurements in turns."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

Each = TypeVar("Each")


def in_turns(all_of: Sequence[Each], rounds: int) -> Iterator[tuple[int, Each]]:
    """Each once in every round, forwards and backwards alternately, so that a slowing machine slows all alike."""
    for number in range(rounds):
        for one in all_of[:: -1 if number % 2 else 1]:
            yield number, one
