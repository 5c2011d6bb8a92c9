"""Shared by the commands: exit codes, and options that several of them have."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from loadtest import photos

Number = TypeVar("Number", int, float)


class LoadTestError(Exception):
    """A command cannot go on; the message says why."""


def run(main: Callable[[], int], *expected: type[Exception]) -> int:
    """Run a command and return its exit code: 1 and a one-line message for foreseen errors, 130 for Ctrl-C.

    Bad input, I/O errors and `expected` exceptions are foreseen. SIGTERM and SIGHUP are handled like Ctrl-C, so that
    every server that was started is stopped.
    """
    for polite in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(polite) != signal.SIG_IGN:  # nohup ignores SIGHUP: leave it so
            signal.signal(polite, lambda *_: signal.raise_signal(signal.SIGINT))
    foreseen: tuple[type[Exception], ...] = (LoadTestError, OSError, EOFError, ValueError, *expected)
    try:
        return main()
    except foreseen as error:
        told = str(error) or repr(error)
        if isinstance(error, OSError) and error.filename is not None:  # a file, or the server's host and port
            told = f"{error.filename}: {error.strerror}"
        print(f"error: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parser(
    prog: str,
    doc: str | None,
    *,
    seconds: float | None = None,
    warm_up: float | None = None,
    model: str | None = None,
    repository: Path = Path("model_repository"),
) -> argparse.ArgumentParser:
    """A parser with the options of a command that loads a server.

    `seconds` or `warm_up` of None leaves the option out; `model` of None leaves the choice to the server.
    """
    made = argparse.ArgumentParser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = f"default {repository}"
    made.add_argument("--repository", type=Path, default=repository, metavar="FOLDER", help=text)
    text = f"default {model}" if model else "if not the server's default"
    made.add_argument("--model", metavar="NAME", default=model, help=text)
    made.add_argument("--photos", type=Path, default=photos.FOLDER, metavar="FOLDER")
    if seconds is not None:
        text = f"of each measurement (default {seconds:g})"
        made.add_argument("--seconds", type=float, default=seconds, metavar="S", help=text)
    if warm_up is not None:
        text = f"before each (default {warm_up:g})"
        made.add_argument("--warm-up", type=float, default=warm_up, metavar="S", help=text)
    return made


def numbers(kind: Callable[[str], Number]) -> Callable[[str], list[Number]]:
    """A parser for comma-separated numbers."""

    def parse(text: str) -> list[Number]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, such as 1,2") from None

    return parse


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser for a comma-separated choice of these names."""

    def parse(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := set(wanted).difference(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
        return wanted

    return parse
