"""The command that makes a model from a foreign ONNX file: `python export/from_onnx.py FILE --name NAME`."""

import export.interrupts  # noqa: F401 before the slow imports

# isort: split

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export import command, console, options

if TYPE_CHECKING:
    from export.imported import Import


def _run(arguments: argparse.Namespace) -> None:
    from export import imported, onnx_file  # these import ONNX and torch, which takes seconds

    stated = options.stated(arguments)
    file = onnx_file.read(arguments.file, arguments.input, arguments.output, arguments.layout)
    found = imported.plan(
        file, stated, arguments.scores, arguments.labels, arguments.check_images, command.expected(arguments)
    )
    console.say(f"{arguments.file}: {file}")
    _tell(found, stated, labelled=arguments.labels is not None)
    name, needed_bytes = arguments.name, len(file.content)
    command.add_export(arguments.repository, name, found.fingerprint(), partial(found.make, name), needed_bytes)


def _tell(found: "Import", stated: options.Stated, *, labelled: bool) -> None:
    """Print what was found out, and what was assumed because nothing states it."""
    meaning = found.meaning
    taken = f"the logits before its {meaning.activation}" if meaning.inner else f"its {meaning.taken.scores}"
    console.say(f"taken from it: {taken}, of {meaning.num_classes} classes")
    if found.original.batch is not None:
        console.say(f"its batch size is fixed at {found.original.batch}, and is made free")
    if assumed := found.assumed(stated):
        console.say(f"assumed, since an ONNX file does not say it (docs/guides/preprocessing.md): {assumed}")
    if not labelled:
        console.say("its classes are numbered: name them with --labels FILE, or --labels imagenet if they are those")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="from_onnx.py",
        description="Add preprocessing and ranking to the ONNX file of an image classifier, compare the result with the"
        " file, and add it to the model repository.",
        epilog="docs/guides/from_onnx.md says which files can be imported.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the ONNX file, with its external data beside it")
    command.add(parser, "--name", required=True, help="name in the repository")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="names of the classes, or imagenet or cifar10; numbered if not given",
    )
    parser.add_argument("--input", metavar="NAME", help="input that takes the image, if the file has several")
    parser.add_argument(
        "--output", metavar="NAME", help="value that has a score for each class, if the file has several"
    )
    parser.add_argument("--layout", choices=("nchw", "nhwc"), help="layout of the image, if the file does not tell")
    parser.add_argument(
        "--scores", choices=("logits", "probabilities"), help="kind of the scores, if the file does not tell"
    )
    options.add_preprocessing(parser)
    command.add_expectation(parser)
    command.add(parser, "--repository", "--check-images")
    return parser


main = partial(command.main, _parser, _run)

if __name__ == "__main__":
    sys.exit(main())
