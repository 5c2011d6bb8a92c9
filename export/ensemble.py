"""The command that makes one model of several: `python export/ensemble.py NAME MEMBER MEMBER...`."""

import export.interrupts  # noqa: F401 before the slow imports

# isort: split

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.table import Table

from export import averaging, command, console, repository
from export.samples import readable
from models.manifest import Ensemble


def _run(options: argparse.Namespace) -> None:
    root: Path = options.repository
    members = averaging.find_members(root, options.members)
    if command.is_there(root, options.name, averaging.fingerprint(members), "there already"):
        return
    command.prepare(root, options.name)
    command.warn_of_cpu(*members)
    draft = averaging.measure(root, options.name, members, readable(options.images), options.labels_from)
    _show(root, repository.publish(root, draft))


def _show(root: Path, ensemble: Ensemble) -> None:
    table = Table("model", "top-1 %", "top-5 %")
    rows = [(f"{member.name} version {member.version}", member.accuracy) for member in ensemble.members]
    for name, accuracy in (*rows, (f"{ensemble.name} version {ensemble.version}", ensemble.accuracy)):
        figures = (accuracy.top1, accuracy.top5) if accuracy else (None, None)
        table.add_row(name, *("" if figure is None else f"{figure:.1f}" for figure in figures))
    console.console.print(table)
    console.say(f"{ensemble.images} images; all members agree on {ensemble.agreement:.1%} of them")
    console.say(f"written to {console.folder(root, ensemble)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ensemble.py", description="Serve several models as one: the mean of their probabilities."
    )
    parser.add_argument("name", type=command.model_name, metavar="NAME", help="name of the ensemble")
    parser.add_argument(
        "members", nargs="+", metavar="MEMBER", help="NAME or NAME:VERSION of a model in the repository"
    )
    command.add(parser, "--repository", "--images", "--labels-from")
    return parser


main = partial(command.main, _parser, _run)

if __name__ == "__main__":
    sys.exit(main())
