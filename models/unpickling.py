"""Files of `torch.save`, read without importing or calling anything that they name.

Ordinary unpickling imports the classes and calls the functions that a file names, whatever they do. Torch's restricted
unpickler makes tensors and plain containers and refuses all else, though it only lies beside the tensors: a script's
options, paths, NumPy's numbers, a loss. Here each of those names gets a stand-in that does nothing.
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
"""Names that one file may have: each is found by reading up to it."""
_LISTS = ("collections.deque",)
"""What is filled as lists are; all else may be filled as mappings are."""


def load(path: Path) -> object:
    """Read a file, its tensors to the CPU, with stand-ins for whatever torch does not know.

    Raises:
        OSError: it cannot be read.
        Exception: whatever torch raises of what it did not write, or what is cut off.
    """
    stand_ins: dict[str, type] = {}
    while True:
        known: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
        known = [(stand_in, name) for name, stand_in in stand_ins.items()]
        with (
            path.open("rb") as file,  # as a name, torch would believe its suffix
            warnings.catch_warnings(action="ignore"),  # torch warns of an odd pickle before it refuses it
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
    """Name the class or function of the file whose stand-in made `content`; None: no stand-in did."""
    return getattr(content, "stands_for", None) if isinstance(content, Counter) else None


def _stand_in(name: str) -> type:
    """A class that takes any arguments and makes an empty container.

    Of torch's unpickler only the very types `list`, `dict`, `OrderedDict` and `Counter` can be filled with what follows
    in the file, and of these a `Counter` may set its state itself.
    """

    def make(_: type, *_arguments: Any) -> object:
        if name in _LISTS:
            return []
        made: Counter[object] = Counter()
        vars(made).update(stands_for=name, __setstate__=lambda _state: None)
        return made

    return type(name, (), {"__new__": make})
