"""Cascades: finds the rule by which quick models' answers are sure enough, and measures what it saves."""

import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from export import averaging, backends, comparison, repository, samples, thresholds
from export.console import step
from export.samples import LabelsFrom
from export.thresholds import Asked, Passed
from models.confidence import certainty
from models.errors import ExpectedError
from models.intervals import clopper_pearson, trials_to_prove
from models.manifest import Accuracy, Activation, Cascade, Ensemble, Manifest, Rule, RuleKind, Share, Stage
from models.weights import sha256_of

KINDS: tuple[RuleKind, ...] = get_args(RuleKind)
NEVER_SURE = 2.0
"""Greater than any certainty."""
_BATCH = 8
_ROW = 8
"""Number of images with which speed is measured."""


class CascadeError(ExpectedError):
    """The members do not go together, or no rule is worth publishing."""


class Member(NamedTuple):
    """A model or an ensemble, and the models that it runs."""

    entry: Manifest | Ensemble
    models: tuple[Manifest, ...]

    @property
    def sha256(self) -> str:
        """Its digest in a cascade's manifest: the file's, or an ensemble's fingerprint."""
        return self.entry.file.sha256 if isinstance(self.entry, Manifest) else self.entry.fingerprint


@dataclass(frozen=True)
class Wanted:
    """Everything that determines a cascade, except its members."""

    reference: Member
    """Its best class is the one that the cascade must give."""
    tune: Sequence[Path]
    judge: Sequence[Path]
    min_agreement: float
    """Least share of `judge` with the reference's best class, 0 to 1."""

    def fingerprint(self, members: Sequence[Member]) -> str:
        """Digest everything, including the members."""
        ingredients = [
            [member.entry.fingerprint for member in (*members, self.reference)],
            self.min_agreement,
            [sha256_of(Path(thresholds.__file__))],
            [[sha256_of(path) for path in paths] for paths in (self.tune, self.judge)],
        ]
        return repository.digest(ingredients)


@dataclass(frozen=True)
class Said:
    """The members' and the reference's answers to the same images, those for tuning first."""

    probabilities: Sequence[NDArray[np.float64]]
    """float64[M, num_classes] of each member."""
    right: Sequence[NDArray[np.bool_]]
    """bool[M] of each member: it has the reference's best class."""
    reference: NDArray[np.float64]
    seconds: Sequence[float] | None
    """Per image, of each member alone; None: not measured."""
    added: Sequence[float]
    """Cost of each member for an image that reaches it, without models that already ran; 1 without `seconds`."""


def find(root: Path, text: str) -> Member:
    """Find a model or an ensemble by NAME or NAME:VERSION.

    Raises:
        ExpectedError: it is not in the repository, or is a cascade.
    """
    entry = repository.get_entry(root, *averaging.named(text))
    match entry:
        case Manifest():
            return Member(entry, (entry,))
        case Ensemble():
            return Member(entry, tuple(repository.get(root, one.name, one.version) for one in entry.members))
        case Cascade():
            raise CascadeError(f"{entry.name} is a cascade: name its members")


def check(members: Sequence[Member], reference: Member) -> None:
    """Refuse members that cannot form a cascade.

    Raises:
        ExpectedError: there are too few or too many, one is there twice, or their classes or activations differ.
    """
    averaging.check_together([model for member in (*members, reference) for model in member.models])
    if not 2 <= len({member.entry.name for member in members}) == len(members) <= 8:
        raise CascadeError("a cascade has two to eight members, and none twice")


def measure(
    root: Path, name: str, members: Sequence[Member], wanted: Wanted, labels_from: LabelsFrom, seconds: float
) -> Cascade:
    """Draft a cascade: find its rule on some of the images, and measure it on the others.

    Args:
        root: the repository.
        name: of the cascade.
        members: in the order in which they are asked.
        wanted: the reference, the images and the required agreement.
        labels_from: source of the images' classes.
        seconds: for measuring speed; 0: without costs, the rule passes on as few images as possible.

    Raises:
        ExpectedError: an image cannot be read, or no rule reaches the required agreement.
    """
    paths = [*wanted.tune, *wanted.judge]
    labels = members[0].entry.labels
    classes = samples.classes(paths, labels, labels_from)
    said = _ask(root, members, wanted.reference, paths, seconds)
    tuned = slice(0, len(wanted.tune))
    judged = slice(len(wanted.tune), None)
    activation = members[0].models[0].activation
    with step(f"find the rule on {len(wanted.tune)} images"):
        kind, limits = _best_rule(said, tuned, activation, 1 - wanted.min_agreement)
    rules = [Rule(kind=kind, threshold=limit) for limit in limits]
    passed = thresholds.pass_on(_asked(said, judged, kind, activation), limits)
    agreement = _share(passed.right)
    if agreement.share < wanted.min_agreement:
        raise CascadeError(_too_seldom(wanted, agreement, len(wanted.judge)))
    _check_worth(members, said, passed)
    right_classes = None if classes is None else classes[judged]

    def accuracy(probabilities: NDArray[np.float64]) -> Accuracy | None:
        return None if right_classes is None else comparison.accuracy(probabilities, right_classes)

    judged_answers = np.stack([each[judged] for each in said.probabilities])
    stages = [
        Stage(
            name=member.entry.name,
            version=member.entry.version,
            sha256=member.sha256,
            accuracy=accuracy(judged_answers[index]),
            rule=rules[index] if index < len(rules) else None,
            answered=float((passed.answered == index).mean()),
            top1_agreement=_share(said.right[index][judged]),
            seconds=said.seconds[index] if said.seconds else None,
        )
        for index, member in enumerate(members)
    ]
    return Cascade(
        name=name,
        version=1,
        created=datetime.now(UTC),
        members=tuple(stages),
        labels=labels,
        top_k=members[0].entry.top_k,
        reference=wanted.reference.entry.name,
        reference_version=wanted.reference.entry.version,
        tuned_on=len(wanted.tune),
        images=len(wanted.judge),
        top1_agreement=agreement,
        min_agreement=wanted.min_agreement,
        accuracy=accuracy(judged_answers[passed.answered, np.arange(len(passed.answered))]),
        reference_accuracy=accuracy(said.reference[judged]),
        seconds=passed.cost if said.seconds else None,
        fingerprint=wanted.fingerprint(members),
    )


def what_it_proves(cascade: Cascade) -> str:
    """Say in one line how far the images prove the required agreement."""
    agreement, images, wanted = cascade.top1_agreement, cascade.images, cascade.min_agreement
    wrong = round(images * (1 - agreement.share))
    seen = f"{wrong} of {images} wrong proves"
    if agreement.low >= wanted:
        return f"{seen} {math.floor(1e4 * agreement.low) / 100:g}% or more"  # rounding up would claim more
    if agreement.share <= wanted:
        return f"{seen} no more than {agreement.low:.1%}"
    enough = trials_to_prove(wanted)
    while clopper_pearson(enough - math.ceil(wrong / images * enough), enough).low < wanted:
        enough = math.ceil(1.1 * enough)
    more = f"to prove {100 * wanted:g}%, at that rate, takes about {enough} images"
    return f"{seen} no more than {agreement.low:.1%}; {more}"


def _ask(root: Path, members: Sequence[Member], reference: Member, paths: Sequence[Path], seconds: float) -> Said:
    """Run each model once on all images; models that read images alike run together."""
    models = {(model.name, model.version): model for member in (*members, reference) for model in member.models}
    logits: dict[tuple[str, int], comparison.Answers] = {}
    costs: dict[tuple[str, int], float] = {}
    left = list(models.values())
    while left:
        alike = [model for model in left if model.preprocessing.reads_as(left[0].preprocessing)]
        left = [model for model in left if model not in alike]
        keys = [(model.name, model.version) for model in alike]
        with ExitStack() as stack:
            loaded = [
                stack.enter_context(closing(backends.load(model, repository.read(root, model)))) for model in alike
            ]
            found = comparison.answers(loaded, paths, alike[0])
            logits |= dict(zip(keys, found, strict=True))
            if seconds:
                pixels = samples.pixels(paths[:_ROW], alike[0].preprocessing)[:, 0]
                paces = comparison.paces(loaded, pixels, [_BATCH], seconds * len(alike) / len(models))
                costs |= dict(zip(keys, (1 / np.median(paces[:, :, 0], axis=0)).tolist(), strict=True))

    def answers(member: Member) -> NDArray[np.float64]:
        each = [logits[model.name, model.version].probabilities()[:, 0] for model in member.models]
        return np.asarray(np.mean(each, axis=0))

    added: list[float] = []
    asked: set[tuple[str, int]] = set()
    for member in members:
        new = {(model.name, model.version) for model in member.models} - asked
        added.append(sum(costs[key] for key in new) if seconds else 1.0)
        asked |= new
    probabilities, wanted = [answers(member) for member in members], answers(reference)
    best = _best(wanted)
    return Said(
        probabilities,
        [_best(each) == best for each in probabilities],
        wanted,
        [sum(costs[model.name, model.version] for model in member.models) for member in members] if seconds else None,
        added,
    )


def _best(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """The most probable class, int64[M]; with a single class, whether it is more likely than not."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > 0.5).astype(np.int64)
    return np.asarray(probabilities.argmax(1), np.int64)


def _asked(said: Said, images: slice, kind: RuleKind, activation: Activation) -> Asked:
    ranked = [-np.sort(-each[images], axis=1) for each in said.probabilities[:-1]]
    return Asked(
        [certainty(kind, each, activation) for each in ranked],
        [each[images] for each in said.right],
        said.added,
    )


def _best_rule(said: Said, images: slice, activation: Activation, allowed: float) -> tuple[RuleKind, list[float]]:
    """Find the cheapest kind of rule, and its thresholds.

    Raises:
        CascadeError: no rule reaches the required agreement.
    """
    found: list[tuple[float, RuleKind, list[float]]] = []
    for kind in KINDS:
        asked = _asked(said, images, kind, activation)
        limits = thresholds.cheapest(asked, allowed)
        if limits is not None:
            lowest = [float(each.min()) for each in asked.certainties]
            finite = [
                low if limit == -np.inf else min(limit, NEVER_SURE) for limit, low in zip(limits, lowest, strict=True)
            ]
            found.append((thresholds.pass_on(asked, finite).cost, kind, finite))
    if not found:
        raise CascadeError("no rule reaches the agreement that is wanted: the last member itself differs too often")
    _, kind, limits = min(found, key=lambda one: one[0])
    return kind, limits


def _share(right: NDArray[np.bool_]) -> Share:
    interval = clopper_pearson(int(right.sum()), len(right))
    return Share(share=float(right.mean()), low=interval.low, high=interval.high)


def _too_seldom(wanted: Wanted, agreement: Share, images: int) -> str:
    text = (
        f"agreement with {wanted.reference.entry.name} is {agreement.share:.1%} on {images} images,"
        f" {100 * wanted.min_agreement:g} % is wanted: no cascade was added to the repository"
    )
    if agreement.high >= wanted.min_agreement:
        return f"{text}; it may be {agreement.high:.1%} in truth: try with more images, or a lower --min-agreement"
    return text


def _check_worth(members: Sequence[Member], said: Said, passed: Passed) -> None:
    """Refuse a cascade that is no cheaper than its last member.

    Raises:
        CascadeError: it is not, or only its last member ever answers.
    """
    last = members[-1].entry.name
    if (passed.answered == len(members) - 1).all():
        raise CascadeError(
            f"no member is ever sure enough but the last: no cascade was added to the repository, use {last}"
        )
    if said.seconds and passed.cost >= said.seconds[-1]:
        raise CascadeError(
            f"it would cost {passed.cost * 1e3:.1f} ms an image, and {last} alone {said.seconds[-1] * 1e3:.1f} ms:"
            " no cascade was added to the repository"
        )
