"""The commands' output in the terminal: progress, messages and results."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import track as _track
from rich.table import Column, Table

from models.manifest import Entry, Manifest

console = Console(highlight=False)
_progress = Console(stderr=True)
_UNLIMITED = 10_000
"""Columns that a terminal may have, as far as a table's own width is asked for."""
_Item = TypeVar("_Item")


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show that a step is in progress, and afterwards how long it took."""
    started = time.monotonic()
    with console.status(what):
        yield
    console.print(f"[green]✓[/] {what} [dim]{time.monotonic() - started:.1f} s[/]")


def track(items: Sequence[_Item], what: str) -> Iterable[_Item]:
    """Show on a terminal how many of the items are done."""
    return _track(items, what, console=_progress, transient=True, disable=not _progress.is_terminal)


def printable(text: str) -> str:
    """Write line ends and control characters, which names in a file may have, as escapes: they could do anything."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def say(text: str) -> None:
    """Print a line without wrapping it."""
    console.print(escape(printable(text)), soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning without wrapping it."""
    console.print(f"[yellow]{escape(printable(text))}[/]", soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table; if it is too wide for the terminal, print its rows as columns."""
    if Measurement.get(console, console.options.update(max_width=_UNLIMITED), table).maximum > console.width:
        first, *others = table.columns
        rows = [(column.header, *column.cells) for column in others]
        turned = (Column(cell, justify="right", overflow="fold") for cell in first.cells)
        table = Table(Column(first.header, overflow="fold"), *turned, caption=table.caption)
        for row in rows:
            table.add_row(*row)
    console.print(table)


def folder(repository: Path, known: Entry) -> str:
    """Name the folder of a version."""
    return str(repository / known.name / str(known.version))


def file(repository: Path, known: Manifest) -> str:
    """Name a version's file, and its size."""
    return f"{folder(repository, known)}/{known.file.name}, {known.file.size_bytes / 1e6:.1f} MB"


def show(published: Manifest, rows: Mapping[str, str]) -> None:
    """Print what is known about a model that was added to the repository, a row for each fact."""
    table = Table(show_header=False)
    for name, fact in rows.items():
        table.add_row(name, escape(printable(fact)))
    console.print(table)
    if published.weights.random:
        warn("Its weights are random: its answers mean nothing.")
