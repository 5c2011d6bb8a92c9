"""Which part of a checkpoint to read; decided without importing torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """The user's choices; None where the user made none: see `models.checkpoint.read`."""

    averaged: bool = False
    """Take the moving averages instead of the trained parameters."""
    key: str | None = None
    prefix: str | None = None
    head: str | None = None

    @property
    def is_chosen(self) -> bool:
        """Whether the user chose anything."""
        return self != Part()

    def __str__(self) -> str:
        """Suffix to the file's name in a manifest: ", moving averages", ", key teacher"."""
        chosen = {"key": self.key, "prefix": self.prefix, "head": self.head}
        named = ["moving averages"] if self.averaged else []
        named += [f"{name} {value}" for name, value in chosen.items() if value is not None]
        return "".join(f", {one}" for one in named)
