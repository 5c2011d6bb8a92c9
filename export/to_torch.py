"""The command that exports a network as a program of PyTorch: `python export/to_torch.py SOURCE`.

The reference backend: it shows what PyTorch itself does with the same graph, on the CPU or on a GPU.
"""

import export.interrupts  # noqa: F401 before the slow imports

# isort: split

import argparse
import sys
from functools import partial

from export import command, convert


def _run(options: argparse.Namespace) -> None:
    recipe = command.recipe_of(options.network, options)
    suffix = "" if options.precision == "fp32" else f"-{options.precision}"
    name = options.name or f"{recipe.name}-torch{suffix}"

    def make() -> convert.Made:
        weights_file = recipe.obtain_weights(options.weights_dir)
        return convert.to_program(recipe, name, weights_file, options.check_images, options.precision)

    command.add_export(
        options.repository,
        name,
        convert.program_fingerprint(recipe, options.precision),
        make,
        command.size_bytes(options.weights),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="to_torch.py",
        description="Export a network as a program of PyTorch (torch.export), compare it with the network itself, and"
        " add it to the model repository as NAME-torch. A server needs torch to run it. No program has"
        " run on a GPU yet.",
    )
    parser.add_argument("network", metavar="SOURCE", help=command.sources())
    parser.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="precision of the program; fp32 if not given"
    )
    command.add_recipe(parser)
    return parser


main = partial(command.main, _parser, _run)

if __name__ == "__main__":
    sys.exit(main())
