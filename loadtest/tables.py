"""Tables of figures, for a terminal and in Markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Row = TypeVar("Row")
Columns = Mapping[str, Callable[[Row], str]]
"""Column titles, each with a function that formats its cell of a row."""


def line(columns: Columns[Row], row: Row | None) -> str:
    """A line of a table in a terminal, which is printed line by line; None: its head."""
    cells = (text(row) if row is not None else title for title, text in columns.items())
    return "  ".join(cell.rjust(max(6, len(title))) for cell, title in zip(cells, columns, strict=True))


def markdown(columns: Columns[Row], rows: Iterable[Row], texts: int = 0) -> str:
    """A whole table; all but the first `texts` columns are aligned to the right."""
    rules = ["---"] * texts + ["---:"] * (len(columns) - texts)
    return lines(list(columns), [rules, *([text(row) for text in columns.values()] for row in rows)])


def lines(head: Sequence[str], below: Iterable[Sequence[str]]) -> str:
    """A whole table, from its head and the lines below, which may have fewer cells."""
    full = [head, *([*cells, *[""] * (len(head) - len(cells))] for cells in below)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in full)


def percent(share: float | None) -> str:
    """A share; "-" if it is unknown."""
    return "-" if share is None else f"{share:.0%}"


def decimal(value: float | None, digits: int = 1) -> str:
    """A number; "-" if it is unknown."""
    return "-" if value is None else f"{value:.{digits}f}"
