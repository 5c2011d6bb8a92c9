"""What a request is: an ask becomes a plan, and each image by that plan an answer."""

import math
from typing import NamedTuple, Self

from models.manifest import Cascade, CropCount, Entry, Rule
from server.engine.classes import Classes
from server.engine.scheduler import Priority
from server.metrics import Labels
from server.repository import Catalogue, Model
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

    @classmethod
    def of(cls, ask: Ask, catalogue: Catalogue, settings: Settings) -> Self:
        """Resolve what is asked for.

        Raises:
            ServiceError: UNKNOWN_MODEL, MODEL_UNAVAILABLE.
        """
        entry = catalogue.resolve(ask.model, ask.version)
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
    def random_weights(self) -> bool:
        """Whether an untrained network has a say, so that the answer means nothing."""
        return any(member.manifest.weights.random for member in self.members)

    def deadline_s(self, received_s: float) -> float:
        """Of an image whose last byte came at `received_s` of the monotonic clock."""
        return min(received_s + self.timeout_s, self.ask.patience_s)

    def within_s(self, now_s: float) -> float:
        """What is left until then for an image whose last byte comes now."""
        return min(self.timeout_s, self.ask.patience_s - now_s)


class Answer(NamedTuple):
    """What became of one image."""

    plan: Plan
    """by which it was answered: what is served may have changed since it was asked"""
    classes: Classes
    total_s: float
    """since the last byte of the upload"""

    @property
    def remembered(self) -> bool:
        """Whether neither decoder nor engine was needed."""
        return self.classes.batch_size == 0
