"""What became of a run, as one HTML file that needs nothing else: verdicts, figures, plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.rcParams["svg.hashsalt"] = "resnet-serving"  # else each file has ids of its own
_SIZE_IN = (9.0, 2.6)
_STYLE = (
    "body{font:15px system-ui;max-width:60em;margin:2em auto;padding:0 1em}td{padding:.2em 1em .2em 0}svg{width:100%}"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One threshold and what was found."""

    what: str
    found: float
    most: float

    @property
    def kept(self) -> bool:
        """Not a number is not kept: nothing was measured."""
        return self.found <= self.most

    def __str__(self) -> str:
        return f"{'kept' if self.kept else 'FAILED'}: {self.what} {self.found:g}, at most {self.most:g}"


@dataclass(frozen=True, slots=True)
class Panel:
    """A diagram over time: for each line its seconds and values."""

    title: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    marks: Sequence[tuple[float, str]] = ()
    """vertical lines: second and colour"""


def html(title: str, verdicts: Sequence[Verdict], figures: Mapping[str, str], panels: Sequence[Panel]) -> str:
    """The whole page."""
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(value)}" for name, value in figures.items())
    said = "".join(f"<li>{escape(str(verdict))}" for verdict in verdicts)
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><ul>{said}</ul><table>{rows}</table>{svg(panels)}"
    )


def svg(panels: Sequence[Panel]) -> str:
    """The panels below each other, without what comes before the element."""
    figure = Figure(figsize=(_SIZE_IN[0], _SIZE_IN[1] * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for label, (seconds, values) in panel.lines.items():
            axes.plot(seconds, values, label=label)
        for second, colour in panel.marks:
            axes.axvline(second, color=colour, alpha=0.4, lw=0.8)
        axes.set_title(panel.title, loc="left", fontsize="medium")
        axes.set_xlabel("seconds")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        if panel.lines:
            axes.legend(fontsize="small", frameon=False, loc="upper left", ncols=4)
    stream = StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue().partition("<svg")[1] + stream.getvalue().partition("<svg")[2]


def write(path: Path, content: str) -> None:
    """Write a page, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
