"""The command that reports on an exported model: `python export/verify.py NAME`."""

import export.interrupts  # noqa: F401 before the slow imports

# isort: split

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from export import command, diagrams, report
from export.backends import RUNTIMES
from export.report import Questions
from export.samples import CROPS, readable

Choice = TypeVar("Choice")


def _run(options: argparse.Namespace) -> None:
    subjects = report.beside_fp32(options.repository, options.name, options.version, options.backend)
    if options.report:
        diagrams.require()
    if not options.json:
        command.warn_of_cpu(*(subject.model for subject in subjects))
    questions = Questions(
        readable(options.images),
        options.threads,
        options.labels_from,
        options.crops,
        options.batch_sizes,
        options.seconds,
    )
    found = report.compare(subjects, questions)
    if options.json:
        print(found.model_dump_json())
    else:
        found.show()
    if options.report:
        drawn = found.draw(options.report)
        print(f"drawn: {drawn}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verify.py",
        description="Compare an exported model with the FP32 model it was made from: answers, accuracy, size, speed.",
    )
    parser.add_argument("name", metavar="NAME", help="a model of the repository")
    parser.add_argument("--version", type=int, metavar="N", help="version of the model; the newest if not given")
    command.add(parser, "--repository", "--images", "--labels-from")
    parser.add_argument(
        "--crops",
        type=_some(CROPS, int),
        metavar="N,...",
        default=(1,),
        help="accuracy with 1 crop of an image, 10, or both: 1,10",
    )
    parser.add_argument(
        "--backend",
        type=_some(RUNTIMES, str),
        metavar="NAME,...",
        help=f"runtimes to compare: {', '.join(RUNTIMES)}; if not given, the model's own",
    )
    parser.add_argument(
        "--batch-sizes", type=_sizes, metavar="N,...", default=(1, 4, 8), help="batch sizes to measure speed with"
    )
    command.add(parser, "--threads", "--seconds")
    command.add(parser, "--report")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _some(known: Sequence[Choice], read: Callable[[str], object]) -> Callable[[str], tuple[Choice, ...]]:
    """Make a parser of choices from `known`, separated by commas."""

    def parse(text: str) -> tuple[Choice, ...]:
        try:
            return tuple(known[known.index(read(word))] for word in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(map(str, known))}") from None

    return parse


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(command.BATCH, text.split(",")))


main = partial(command.main, _parser, _run)

if __name__ == "__main__":
    sys.exit(main())
