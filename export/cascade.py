"""The command that makes a cascade of models: `python export/cascade.py NAME MEMBER...`."""

import export.interrupts  # noqa: F401 before the slow imports

# isort: split

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from export import cascading, command, console, convert, exact, repository
from export.cascading import CascadeError, Member, Wanted
from export.samples import readable
from models import zoo
from models.manifest import EXACT, Accuracy, Cascade, Rule, Share

DEFAULT_AGREEMENT = 99.9


class _Asked(NamedTuple):
    name: str
    members: Sequence[Member]
    tune: Sequence[Path]
    judge: Sequence[Path]


def _run(options: argparse.Namespace) -> None:
    root: Path = options.repository
    asked = _exact(root, options) if options.exact is not None else _named(root, options)
    reference = cascading.find(root, options.of) if options.of else asked.members[-1]
    cascading.check(asked.members, reference)
    wanted = Wanted(reference, asked.tune, asked.judge, options.min_agreement / 100)
    if not command.is_there(root, asked.name, wanted.fingerprint(asked.members), "there already"):
        command.prepare(root, asked.name)
        command.warn_of_cpu(*(model for member in asked.members for model in member.models))
        draft = cascading.measure(root, asked.name, asked.members, wanted, options.labels_from, options.seconds)
        _show(root, repository.publish(root, draft))
    console.say(_what_now(asked.name, asked.members[-1].entry.name))


def _what_now(name: str, last: str) -> str:
    """Say when servers use a cascade, and what it lacks."""
    use = f"Requests get it by its name, or with the server's flag --default-model {name}."
    if name in (zoo.DEFAULT + EXACT, zoo.OFFLINE_DEFAULT + EXACT):
        use = f"Servers that would serve {last} by default serve {name} from their next start."
    return f"{use} It has no logits, features, heat maps, coverage or reject: ask {last} for these by name."


def _named(root: Path, options: argparse.Namespace) -> _Asked:
    if options.name is None or not options.members:
        raise CascadeError("name the cascade and its members: NAME MEMBER MEMBER..., or --exact MODEL")
    members = [cascading.find(root, name) for name in options.members]
    paths = readable(options.images)
    if len(paths) < 2:
        raise CascadeError(f"{options.images} has one image: give two at least, to find the rule and to judge it")
    return _Asked(options.name, members, paths[::2], paths[1::2])


def _exact(root: Path, options: argparse.Namespace) -> _Asked:
    """Return the model in INT8, made if it is missing, and in FP32."""
    if options.members:
        raise CascadeError("--exact has its own members: the model in INT8 and in FP32")
    images = exact.split(readable(options.images))
    source = convert.find_or_export(root, options.exact or _default(root), options.weights_dir)
    first = exact.int8_of(root, source, images, options.labels_from)
    console.say(f"{first.name} version {first.version} is in the repository, even if the cascade is not")
    members = [cascading.find(root, f"{model.name}:{model.version}") for model in (first, source)]
    return _Asked(options.name or source.name + EXACT, members, images.tune, images.judge)


def _default(root: Path) -> str:
    return next(
        (name for name in (zoo.DEFAULT, zoo.OFFLINE_DEFAULT) if repository.newest(root, name)), zoo.OFFLINE_DEFAULT
    )


def _show(root: Path, cascade: Cascade) -> None:
    headings = ["its answer is final if", "answers %", "agreement % (95 %)", "top-1 %", "ms"]
    table = Table("member", *headings)
    for member in cascade.members:
        table.add_row(
            f"{member.name} version {member.version}",
            _where(member.rule),
            f"{100 * member.answered:.1f}",
            _interval(member.top1_agreement),
            _top1(member.accuracy),
            _milliseconds(member.seconds),
        )
    name = f"{cascade.name} version {cascade.version}"
    agreement = _interval(cascade.top1_agreement)
    table.add_row(name, "", "100.0", agreement, _top1(cascade.accuracy), _milliseconds(cascade.seconds))
    console.print_table(table)
    last = cascade.members[-1]
    if cascade.seconds and last.seconds:
        console.say(f"an image costs {cascade.seconds / last.seconds:.0%} of what it costs {last.name}")
    console.say(
        f"agreement is with the best class of {cascade.reference}, on {cascade.images} images;"
        f" the rule was found on {cascade.tuned_on} others"
    )
    if cascade.top1_agreement.low < cascade.min_agreement:
        console.warn(cascading.what_it_proves(cascade))
    else:
        console.say(cascading.what_it_proves(cascade))
    console.say(f"written to {console.folder(root, cascade)}")


def _where(rule: Rule | None) -> str:
    if rule is None:
        return "it is asked"
    if rule.kind == "entropy":
        return f"the entropy is {-rule.threshold:.3g} or less"
    return f"the {'largest probability' if rule.kind == 'probability' else 'margin'} is {rule.threshold:.3g} or more"


def _interval(share: Share) -> str:
    return f"{100 * share.share:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _top1(accuracy: Accuracy | None) -> str:
    return f"{accuracy.top1:.1f}" if accuracy else ""


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cascade.py",
        description="Serve several models as one: the server asks each only if the one before it was not sure.",
    )
    parser.add_argument("name", nargs="?", type=command.model_name, metavar="NAME", help="name of the cascade")
    parser.add_argument(
        "members",
        nargs="*",
        metavar="MEMBER",
        help="NAME or NAME:VERSION of a model or an ensemble in the repository, the quickest first",
    )
    parser.add_argument(
        "--min-agreement",
        type=command.PERCENT,
        metavar="PERCENT",
        default=DEFAULT_AGREEMENT,
        help=f"least share of images with --of's best class; {DEFAULT_AGREEMENT:g} if not given",
    )
    parser.add_argument(
        "--of", metavar="MODEL", help="model whose best class counts as right; if not given, the last MEMBER"
    )
    parser.add_argument(
        "--exact",
        nargs="?",
        const="",
        metavar="MODEL",
        help="instead of members: MODEL, or the default model, in INT8 first (the command makes it if it is missing),"
        " and in FP32 if INT8 is not sure",
    )
    command.add(parser, "--repository", "--weights-dir", "--labels-from", "--seconds")
    command.add(
        parser,
        "--images",
        help="images: half of them find the rule, the others judge it; with --exact, a third calibrates INT8",
    )
    return parser


main = partial(command.main, _parser, _run)

if __name__ == "__main__":
    sys.exit(main())
