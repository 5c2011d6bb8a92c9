"""What the serving core needs of an engine, wherever that runs: in a process of its own, or in this one."""

import math
from collections.abc import Sequence
from typing import Protocol

from models.manifest import CropCount
from server.engine.classes import Classes, Extras, Follow
from server.engine.decoding import Image
from server.engine.scheduler import Priority
from server.repository import Model


class Classifier(Protocol):
    """Decodes images and has an engine classify them. It belongs to one event loop."""

    @property
    def connected(self) -> bool:
        """An engine is there."""

    @property
    def away(self) -> Sequence[int]:
        """The numbers of the engines that are not."""

    def has(self, model: str) -> bool:
        """An engine that is there has the model with this id."""

    def check_admission(self, permits: int = 1, within_s: float = math.inf) -> None:
        """Refuse at once, before anything is spent on a request, what could not be admitted now.

        Raises:
            ServiceError: ENGINE_UNAVAILABLE, QUEUE_FULL, OVERLOADED if the answer would take longer than `within_s`,
                or INVALID_PARAMETER if so many permits could never be had.
        """

    async def classify(
        self,
        image: Image,
        model: Model,
        top_k: int | None,
        deadline_s: float,
        *,
        crops: CropCount = 1,
        priority: Priority = Priority.NORMAL,
        follow: Follow | None = None,
        include: Extras = Extras.NONE,
    ) -> list[Classes]:
        """Classify each crop of one image before `deadline_s` of the monotonic clock; each takes a permit.

        `top_k` None asks for the logits of all classes, which averages need. While `follow` has another question about
        the same pixels, it is asked in the same places; the last answers are returned. Features and activation maps are
        included only of models whose manifest has them.

        Cancelling the call gives the work up: what has not started never will.

        Raises:
            ServiceError: not admitted, not an image, too late, or the engine's own failure.
        """
