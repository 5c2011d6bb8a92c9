"""The report of a run as one self-contained HTML file: verdicts, figures, plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from loadtest import plots
from loadtest.plots import Panel

_STYLE = (
    "body{font:15px system-ui;max-width:60em;margin:2em auto;padding:0 1em}td{padding:.2em 1em .2em 0}svg{width:100%}"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One threshold and the measured value."""

    what: str
    found: float
    most: float

    @property
    def kept(self) -> bool:
        """Whether the threshold was met; NaN does not meet it, since nothing was measured."""
        return self.found <= self.most

    def __str__(self) -> str:
        return f"{'kept' if self.kept else 'FAILED'}: {self.what} {self.found:g}, at most {self.most:g}"


def html(title: str, verdicts: Sequence[Verdict], figures: Mapping[str, str], panels: Sequence[Panel]) -> str:
    """The whole page."""
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(value)}" for name, value in figures.items())
    said = "".join(f"<li>{escape(str(verdict))}" for verdict in verdicts)
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><ul>{said}</ul><table>{rows}</table>{plots.svg(panels)}"
    )


def write(path: Path, content: str) -> None:
    """Write a page, and create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
