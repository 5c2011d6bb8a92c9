"""The command that exports a network as a program of PyTorch: `python export/to_torch.py NAME`.

The reference backend: it shows what PyTorch itself does with the same graph, on the CPU or on a GPU.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from export import command, convert, repository
from models import zoo


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    return command.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    recipe = command.recipe_of(options.network, options)
    suffix = "" if options.precision == "fp32" else f"-{options.precision}"
    name = options.name or f"{options.network}-torch{suffix}"
    fingerprint = convert.program_fingerprint(recipe, options.precision)
    if command.is_there(options.repository, name, fingerprint, "already exported"):
        return
    started = time.monotonic()
    weights_file = recipe.obtain_weights(options.weights_dir)
    made = convert.to_program(recipe, name, weights_file, options.check_images, options.precision)
    published = repository.publish(options.repository, *made)
    command.report_export(options.repository, published, time.monotonic() - started)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="to_torch.py",
        description="Export a network as a program of PyTorch (torch.export), compare it with the network itself, and"
        " add it to the model repository as NAME-torch. A server needs torch to run it.",
    )
    parser.add_argument("network", metavar="NAME", help=f"one of {', '.join(zoo.ENTRIES)}")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="fp32 if not given")
    command.add_recipe(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
