"""Reads files of `torch.save` without importing or calling anything that they name.

Ordinary unpickling imports any class and calls any function that a file names. Torch's restricted unpickler builds
tensors and plain containers and refuses a file that holds anything else, even if that only lies beside the tensors: a
script's options, paths, NumPy numbers, a loss. Here each refused name gets a stand-in that does nothing.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
_MOST = 1000
"""Most refused names in one file: finding each one means reading the file up to it."""
_LISTS = ("collections.deque",)
"""Classes that the unpickler fills like lists; any other may be filled like a mapping."""


def load(path: Path) -> object:
    """Read a file, with its tensors on the CPU, and stand-ins for every class or function that torch refuses.

    Raises:
        OSError: it cannot be read.
        Exception: whatever torch raises for a file that it did not write, or a truncated one.
    """
    stand_ins: dict[str, type] = {}
    while True:
        known: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
        known = [(stand_in, name) for name, stand_in in stand_ins.items()]
        with (
            path.open("rb") as file,  # given a path, torch would trust its suffix
            warnings.catch_warnings(action="ignore"),  # torch warns about an odd pickle before it refuses it
            torch.serialization.safe_globals(known),
        ):
            try:
                return torch.load(file, "cpu", weights_only=True)
            except UnpicklingError as error:
                refused = _REFUSED.search(str(error))
                if refused is None or len(stand_ins) == _MOST:
                    raise
        name = refused[1] if "." in refused[1] else f"builtins.{refused[1]}"
        stand_ins[name] = _stand_in(name)


def stands_for(content: object) -> str | None:
    """Name the class or function whose stand-in made `content`; None if no stand-in did."""
    return getattr(content, "stands_for", None) if isinstance(content, Counter) else None


def _stand_in(name: str) -> type:
    """Make a class that takes any arguments and returns an empty container.

    Torch's unpickler can fill only instances of exactly `list`, `dict`, `OrderedDict` and `Counter` with the content
    that follows in the file, and of these only a `Counter` may have a `__setstate__` of its own.
    """

    def make(_: type, *_arguments: Any) -> object:
        if name in _LISTS:
            return []
        made: Counter[object] = Counter()
        vars(made).update(stands_for=name, __setstate__=lambda _state: None)
        return made

    return type(name, (), {"__new__": make})
