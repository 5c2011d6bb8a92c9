"""The command that exports a network to the model repository: `python export/to_onnx.py SOURCE`."""

import export.interrupts  # noqa: F401 before the slow imports

# isort: split

import argparse
import sys
from functools import partial

from export import command, convert, repository
from export.options import NOTHING, stated
from models import zoo
from models.weights import MIRROR_VARIABLE, UnreachableError


def _run(options: argparse.Namespace) -> None:
    try:
        _export(options.network or zoo.DEFAULT, options)
    except UnreachableError as error:
        if options.network or options.name or stated(options) != NOTHING:
            raise
        if repository.newest(options.repository, zoo.OFFLINE_DEFAULT):
            print(f"The weights of {zoo.DEFAULT} still cannot be downloaded.", file=sys.stderr)
        else:
            print(f"{error}\nExporting {zoo.OFFLINE_DEFAULT} instead, whose weights are installed.", file=sys.stderr)
        _export(zoo.OFFLINE_DEFAULT, options)


def _export(network: str, options: argparse.Namespace) -> None:
    recipe = command.recipe_of(network, options)
    name = options.name or recipe.name

    def make() -> convert.Made:
        return convert.to_onnx(recipe, name, recipe.obtain_weights(options.weights_dir), options.check_images)

    command.add_export(options.repository, name, recipe.fingerprint(), make, command.size_bytes(options.weights))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="to_onnx.py",
        description="Export a network to ONNX, compare it with PyTorch, and add it to the model repository.",
        epilog=f"{MIRROR_VARIABLE} in the environment: URL of a mirror to fetch official weights from.",
    )
    parser.add_argument(
        "network",
        nargs="?",
        metavar="SOURCE",
        help=f"{command.sources()}; {zoo.DEFAULT} if not given ({zoo.OFFLINE_DEFAULT} if that is offline)",
    )
    command.add_recipe(parser)
    return parser


main = partial(command.main, _parser, _run)

if __name__ == "__main__":
    sys.exit(main())
