"""The stages of a request: an `Ask` becomes a `Plan`, and each image becomes an `Answer`."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

from models.manifest import Cascade, CropCount, Entry, Manifest, Rule, members_of
from server.engine.classes import Classes, Extras, average
from server.engine.scheduler import Priority
from server.errors import Code, ServiceError
from server.metrics import Labels
from server.repository import Catalogue, Model
from server.serving import certainty
from server.settings import Settings

DEFAULT_TOP_K = 5


class Ask(NamedTuple):
    """A client's request, independent of its transport."""

    model: str | None = None
    """None: the default model."""
    version: int | None = None
    """None: the newest."""
    top_k: int | None = DEFAULT_TOP_K
    """None: every class."""
    crops: CropCount = 1
    priority: Priority | None = None
    """None: the model's own."""
    patience_s: float = math.inf
    """Time, by the monotonic clock, until which the client waits."""
    include: Extras = Extras.NONE
    """What to return besides the classes."""
    coverage: float | None = None
    """Return a set of classes that contains the true one with this probability, whatever `top_k` is."""
    reject: bool = False
    """Also return whether the image belongs to any of the classes."""

    @property
    def needs_calibration(self) -> bool:
        """Whether only a calibrated model can answer this."""
        return self.reject or self.coverage is not None


class AskedStage(NamedTuple):
    """A member of a cascade."""

    name: str
    models: tuple[Model, ...]
    """Asked one after another; several for an ensemble, whose answer is their mean."""
    rule: Rule | None
    """Decides whether its answer is sure enough; None: its answer is always given."""


class Plan(NamedTuple):
    """How one catalogue answers an ask: which models look at which crops, until when, and before whom."""

    ask: Ask
    catalogue: Catalogue
    entry: Entry
    members: tuple[Model, ...]
    priority: Priority
    timeout_s: float
    """The server's time limit for the answer, from the last byte of the upload."""
    max_batch: int
    stages: tuple[AskedStage, ...] = ()
    """For a cascade, its members, asked in this order; empty for other models, whose members are asked all at once."""
    instead: "Plan | None" = None
    """For a canary, the plan of the requested model, which answers if the canary cannot."""

    @classmethod
    def of(cls, ask: Ask, catalogue: Catalogue, settings: Settings) -> Self:
        """Resolve an ask against a catalogue.

        Raises:
            ServiceError: UNKNOWN_MODEL, MODEL_UNAVAILABLE, UNSUPPORTED_BY_MODEL, NOT_CALIBRATED, INVALID_PARAMETER.
        """
        entry = catalogue.resolve(ask.model, ask.version)
        try:
            if ask.include:
                _check_include(ask, entry)
            if ask.needs_calibration:
                certainty.check(entry, ask.coverage, reject=ask.reject, crops=ask.crops)
        except ServiceError as error:
            error.model = entry.name, str(entry.version)
            raise
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
        """Name and version of the entry, for the metrics."""
        return self.entry.name, str(self.entry.version)

    @property
    def permits(self) -> int:
        """Permits that an image needs: one per crop and member; a cascade's members use the same, in turn."""
        return self.ask.crops * (1 if self.stages else len(self.members))

    @property
    def averages(self) -> bool:
        """Whether the answer is a mean over crops or members, all asked at once."""
        return self.permits > 1

    @property
    def top_k(self) -> int | None:
        """Number of classes in the answer, at most as many as the model's graph ranks; None: every class."""
        top_k = self.ask.top_k
        return None if top_k is None else min(top_k, self.members[0].manifest.top_k)

    @property
    def question(self) -> tuple[int | None, Extras]:
        """What each member is asked about each crop: the number of classes (None: logits of all), and the extras."""
        ask = self.ask
        if ask.needs_calibration:  # always one model and one crop
            ranked = self.top_k if ask.coverage is None else self.members[0].manifest.top_k
            return ranked, ask.include | Extras.LOGITS
        return None if self.averages else ask.top_k, ask.include

    def answer(self, answers: Sequence[Classes]) -> Classes:
        """Combine the members' answers about all crops into the image's answer."""
        ask, found = self.ask, self.members[0].manifest
        if ask.needs_calibration:
            return certainty.judged(answers[0], found, ask.coverage, reject=ask.reject, include=ask.include)
        if self.averages or ask.top_k is None:
            return average(answers, self.top_k, found.activation)
        return answers[0]

    @property
    def random_weights(self) -> bool:
        """Whether any member is untrained, so that the answer means nothing."""
        return any(member.manifest.weights.random for member in self.members)

    def deadline_s(self, received_s: float) -> float:
        """Deadline, by the monotonic clock, of an image whose last byte arrived at `received_s`."""
        return min(received_s + self.timeout_s, self.ask.patience_s)

    def within_s(self, now_s: float) -> float:
        """Seconds until the deadline of an image whose last byte arrives at `now_s`."""
        return min(self.timeout_s, self.ask.patience_s - now_s)


def _check_include(ask: Ask, entry: Entry) -> None:
    """Refuse extras that the entry does not have, or that come only from a single crop.

    Raises:
        ServiceError: UNSUPPORTED_BY_MODEL, INVALID_PARAMETER.
    """
    if not isinstance(entry, Manifest):
        detail = (
            f"{entry.name} combines several networks, each with its own logits, features and maps:"
            f" ask one of them, {members_of(entry)}"
        )
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
    """The answer about one image."""

    plan: Plan
    """The plan that produced it: the requested model's, or its canary's."""
    classes: Classes
    total_s: float
    """Seconds since the last byte of the upload."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of the photo that the network saw, which its activation maps cover; see `Preprocessing.shown`.

        If the client sent pixels, this is all of them.
        """
        size, found = self.classes.photo_size, self.plan.members[0].manifest
        if size == (0, 0):
            return 0.0, 0.0, 1.0, 1.0
        return found.preprocessing.shown(size)

    @property
    def remembered(self) -> bool:
        """Whether the answer came from the cache."""
        return self.classes.batch_size == 0
