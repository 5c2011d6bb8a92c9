"""Draws how reliable probabilities are: reliability and risk-coverage diagrams, as PNG and in an HTML page."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from export.confidence import BINS, Curve
from models import hints
from models.errors import ExpectedError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = "report.html"
_STYLE = (
    "body{font:15px system-ui;max-width:60em;margin:2em auto;padding:0 1em}"
    "th,td{padding:.2em 1em .2em 0;text-align:left}svg{max-width:100%;height:auto}"
)


class DiagramError(ExpectedError):
    """The drawing package is not installed."""


class Figures(NamedTuple):
    """A table of the page."""

    heading: str
    rows: Sequence[Sequence[str]]
    """The first is the table's head."""


def require() -> None:
    """Check, before anything is computed, that diagrams can be drawn.

    Raises:
        DiagramError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DiagramError(f"--report draws, and {hints.missing('matplotlib')}") from error


def write(folder: Path, title: str, tables: Sequence[Figures], curves: Sequence[Curve]) -> Path:
    """Write `reliability.png`, `risk_coverage.png`, and a page with both and the tables, whose path is returned."""
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = "resnet-serving"  # otherwise each file gets different ids
    folder.mkdir(parents=True, exist_ok=True)
    drawn = ""
    draws: Mapping[str, Callable[[Sequence[Curve]], Figure]] = {
        "reliability": _reliability,
        "risk_coverage": _risk_coverage,
    }
    for name, draw in draws.items():
        figure = draw(curves)
        figure.savefig(folder / f"{name}.png", dpi=150)
        stream = StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
        drawn += f"<p>{stream.getvalue()[stream.getvalue().index('<svg') :]}"
    page = folder / PAGE
    page.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1>{''.join(map(_table, tables))}{drawn}"
    )
    return page


def _table(table: Figures) -> str:
    head, *rows = table.rows
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}" for row in rows)
    return (
        f"<h2>{escape(table.heading)}</h2><table><tr>{''.join(f'<th>{escape(cell)}' for cell in head)}{cells}</table>"
    )


def _reliability(curves: Sequence[Curve]) -> "Figure":
    """One panel per curve: bars of accuracy, and points of mean probability, which a calibrated model's bars reach."""
    figure, panels = _figure(len(curves))
    for axes, curve in zip(panels, curves, strict=True):
        middles = [(min(int(one.confidence * BINS), BINS - 1) + 0.5) / BINS for one in curve.bins]
        axes.bar(middles, [one.accuracy for one in curve.bins], 0.9 / BINS, color="C0", label="accuracy")
        axes.plot([0, 1], [0, 1], "--", color="0.4", lw=1)
        confidences = [one.confidence for one in curve.bins]
        axes.plot(confidences, confidences, "o", color="C1", ms=4, label="mean probability")
        for middle, one in zip(middles, curve.bins, strict=True):
            axes.annotate(f"{one.images}", (middle, 0.01), ha="center", fontsize=6, color="w")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the best class", ylabel="share that is right")
        axes.set_title(curve.label, fontsize="medium")
    # above the panels, where the legend hides nothing
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def _risk_coverage(curves: Sequence[Curve]) -> "Figure":
    figure, (axes,) = _figure(1)
    for curve, style in zip(curves, ("-", "--", "-.", ":") * len(curves), strict=False):
        shares, risks = zip(*curve.risk_coverage, strict=True)
        axes.plot(shares, risks, style, label=curve.label)
    axes.set(xlim=(0, 1), xlabel="share of the images that is answered, the surest first", ylabel="share that is wrong")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
    return figure


def _figure(panels: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * panels if panels > 1 else 5.4, 4.0), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])
