"""Which of all that a checkpoint holds is meant; decided without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """What was chosen, and None of what needs no choice: see `models.checkpoint.read`."""

    averaged: bool = False
    """The moving averages that it holds beside the trained parameters."""
    key: str | None = None
    prefix: str | None = None
    head: str | None = None

    @property
    def is_chosen(self) -> bool:
        """Whether anything was."""
        return self != Part()

    def __str__(self) -> str:
        """What follows the file's name in a manifest: ", moving averages", ", key teacher"."""
        chosen = {"key": self.key, "prefix": self.prefix, "head": self.head}
        named = ["moving averages"] if self.averaged else []
        named += [f"{name} {value}" for name, value in chosen.items() if value is not None]
        return "".join(f", {one}" for one in named)
