"""Plots as SVG; the same figures give the same bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.rcParams["svg.hashsalt"] = "resnet-serving"  # otherwise each file has random ids
_SIZE_IN = (5.0, 3.6)
_LONG_SIZE_IN = (9.0, 2.6)

Points = tuple[Sequence[float], Sequence[float]]
"""Seconds of a run, and values."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel; points without a value are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: str = "o-"
    right: bool = False
    """belongs to the axis on the right"""
    colour: int | None = None
    """index of a colour that lines share; None: its own"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram."""

    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    right_label: str = ""
    title: str = ""
    marks: Sequence[tuple[float, str]] = ()
    """x and colour of each event"""


def over_time(title: str, lines: Mapping[str, Points], marks: Sequence[tuple[float, str]] = ()) -> Panel:
    """A wide panel, with seconds as x."""
    return Panel(
        "seconds", "", [Line(label, *points, style="-") for label, points in lines.items()], title=title, marks=marks
    )


def save(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels beside each other."""
    figure = Figure(figsize=(_SIZE_IN[0] * len(panels), _SIZE_IN[1]), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def svg(panels: Sequence[Panel]) -> str:
    """Wide panels below each other, as an element for a page."""
    figure = Figure(figsize=(_LONG_SIZE_IN[0], _LONG_SIZE_IN[1] * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _draw(axes, panel)
    stream = StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()[stream.getvalue().index("<svg") :]


def _draw(axes: Axes, panel: Panel) -> None:
    right = axes.twinx() if any(line.right for line in panel.lines) else None
    for number, line in enumerate(panel.lines):
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
        onto = right if right is not None and line.right else axes
        colour = f"C{number if line.colour is None else line.colour}"
        onto.plot([x for x, _ in points], [y for _, y in points], line.style, label=line.label, color=colour, ms=4)
    for x, colour in panel.marks:
        axes.axvline(x, color=colour, alpha=0.4, lw=0.8)
    axes.set_title(panel.title, loc="left", fontsize="medium")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(visible=True, alpha=0.3)
    if panel.log_x:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks := sorted({x for line in panel.lines for x in line.x}), [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    if panel.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    if right is not None:
        right.set_ylabel(panel.right_label)
        right.set_ylim(bottom=0)
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    axes.legend(  # above, where it hides nothing
        handles,
        labels,
        loc="lower right" if panel.title else "lower center",
        bbox_to_anchor=(1.0 if panel.title else 0.5, 1.0),
        ncols=max(1, min(3, len(labels))),
        fontsize="small",
        frameon=False,
    )
