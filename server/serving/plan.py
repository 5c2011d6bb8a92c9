"""What a request is: an ask becomes a plan, and each image by that plan an answer."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

from models.manifest import Cascade, CropCount, Entry, Manifest, Rule
from server.engine.classes import Classes, Extras, average
from server.engine.scheduler import Priority
from server.errors import Code, ServiceError
from server.metrics import Labels
from server.repository import Catalogue, Model
from server.serving import certainty
from server.settings import Settings

DEFAULT_TOP_K = 5


class Ask(NamedTuple):
    """What a client wants, whichever transport brought it."""

    model: str | None = None
    """None: the default model"""
    version: int | None = None
    """None: the newest"""
    top_k: int | None = DEFAULT_TOP_K
    """None: every class"""
    crops: CropCount = 1
    priority: Priority | None = None
    """None: as the model has it"""
    patience_s: float = math.inf
    """the client waits until then, by the monotonic clock"""
    include: Extras = Extras.NONE
    """what is wanted besides the classes"""
    coverage: float | None = None
    """the classes wanted are those of a set that holds the true one with this probability, whatever `top_k` is"""
    reject: bool = False
    """whether it is an image of any of the classes is to be said, too"""

    @property
    def needs_calibration(self) -> bool:
        """Whether only a calibrated model can answer it."""
        return self.reject or self.coverage is not None


class AskedStage(NamedTuple):
    """A member of a cascade, as it is asked."""

    name: str
    models: tuple[Model, ...]
    """one after another; of an ensemble, several, whose mean is the answer"""
    rule: Rule | None
    """None: its answer is given in any case"""


class Plan(NamedTuple):
    """How one catalogue answers an ask: which models look at which crops, until when, and before whom."""

    ask: Ask
    catalogue: Catalogue
    entry: Entry
    members: tuple[Model, ...]
    priority: Priority
    timeout_s: float
    """what the server gives an answer, from the last byte of the upload"""
    max_batch: int
    stages: tuple[AskedStage, ...] = ()
    """of a cascade, in whose order the members are asked; else all are asked at one time"""
    instead: "Plan | None" = None
    """of a canary: by which the model that was asked for answers where this one cannot"""

    @classmethod
    def of(cls, ask: Ask, catalogue: Catalogue, settings: Settings) -> Self:
        """Resolve what is asked for.

        Raises:
            ServiceError: UNKNOWN_MODEL, MODEL_UNAVAILABLE, UNSUPPORTED_BY_MODEL, NOT_CALIBRATED, INVALID_PARAMETER.
        """
        entry = catalogue.resolve(ask.model, ask.version)
        if ask.include:
            _check_include(ask, entry)
        if ask.needs_calibration:
            certainty.check(entry, ask.coverage, reject=ask.reject, crops=ask.crops)
        own = catalogue.settings(entry)
        stages: tuple[AskedStage, ...] = ()
        if isinstance(entry, Cascade):
            stages = tuple(AskedStage(one.name, tuple(catalogue.stage(one)), one.rule) for one in entry.members)
        return cls(
            ask,
            catalogue,
            entry,
            tuple(catalogue.members(entry)),
            Priority[own.priority.upper()] if ask.priority is None else ask.priority,
            (own.timeout_ms or settings.timeout_ms) / 1e3,
            own.max_batch or settings.max_batch,
            stages,
        )

    @property
    def labels(self) -> Labels:
        """What it is called in the metrics."""
        return self.entry.name, str(self.entry.version)

    @property
    def permits(self) -> int:
        """One for each crop that a member looks at; those of a cascade look one after another."""
        return self.ask.crops * (1 if self.stages else len(self.members))

    @property
    def averages(self) -> bool:
        """Whether the answer is a mean over crops or members, which are asked at one time."""
        return self.permits > 1

    @property
    def top_k(self) -> int | None:
        """Classes of the answer, as many as the model ranks; None: every class, which the graph does not rank."""
        top_k = self.ask.top_k
        return None if top_k is None else min(top_k, self.members[0].manifest.top_k)

    @property
    def question(self) -> tuple[int | None, Extras]:
        """What each member is asked about each crop: how many classes, None: the logits of all, and what else."""
        ask = self.ask
        if ask.needs_calibration:  # of one model and one crop
            ranked = self.top_k if ask.coverage is None else self.members[0].manifest.top_k
            return ranked, ask.include | Extras.LOGITS
        return None if self.averages else ask.top_k, ask.include

    def answer(self, answers: Sequence[Classes]) -> Classes:
        """What becomes of the members' answers to the question, about all crops."""
        ask, found = self.ask, self.members[0].manifest
        if ask.needs_calibration:
            return certainty.judged(answers[0], found, ask.coverage, reject=ask.reject, include=ask.include)
        if self.averages or ask.top_k is None:
            return average(answers, self.top_k, found.activation)
        return answers[0]

    @property
    def random_weights(self) -> bool:
        """Whether an untrained network has a say, so that the answer means nothing."""
        return any(member.manifest.weights.random for member in self.members)

    def deadline_s(self, received_s: float) -> float:
        """Of an image whose last byte came at `received_s` of the monotonic clock."""
        return min(received_s + self.timeout_s, self.ask.patience_s)

    def within_s(self, now_s: float) -> float:
        """What is left until then for an image whose last byte comes now."""
        return min(self.timeout_s, self.ask.patience_s - now_s)


def _check_include(ask: Ask, entry: Entry) -> None:
    """Refuse what is not to be had of a model, or of more than one look at an image.

    Raises:
        ServiceError: UNSUPPORTED_BY_MODEL, INVALID_PARAMETER.
    """
    if not isinstance(entry, Manifest):
        detail = f"{entry.name} is several networks, each with its own logits, features and maps: ask one of them"
        raise ServiceError(Code.UNSUPPORTED_BY_MODEL, detail)
    if ask.include & (Extras.FEATURES | Extras.HEATMAP) and entry.features is None:
        detail = (
            f"{entry.name} version {entry.version} has no features and no heat maps: its network does not end in global"
            " average pooling and one linear layer, or it was exported before these were in the graph (export it again)"
        )
        raise ServiceError(Code.UNSUPPORTED_BY_MODEL, detail)
    if ask.crops != 1:
        detail = "logits, features and heat maps come from a single crop: leave out crops, or leave out include"
        raise ServiceError(Code.INVALID_PARAMETER, detail)


class Answer(NamedTuple):
    """What became of one image."""

    plan: Plan
    """by which it was answered: what is served may have changed since it was asked"""
    classes: Classes
    total_s: float
    """since the last byte of the upload"""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of the photo that the network saw, and activation maps are of; see `Preprocessing.shown`.

        Of pixels, which need no decoding, all.
        """
        size, found = self.classes.photo_size, self.plan.members[0].manifest
        if size == (0, 0):
            return 0.0, 0.0, 1.0, 1.0
        return found.preprocessing.shown(size)

    @property
    def remembered(self) -> bool:
        """Whether neither decoder nor engine was needed."""
        return self.classes.batch_size == 0
