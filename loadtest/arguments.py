"""What several commands take on the command line."""

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

Number = TypeVar("Number", int, float)


def numbers(kind: Callable[[str], Number]) -> Callable[[str], list[Number]]:
    """A parser of numbers, separated by commas."""

    def parse(text: str) -> list[Number]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers, such as 1,2") from None

    return parse


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of some of these names, separated by commas."""

    def parse(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := set(wanted).difference(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
        return wanted

    return parse
