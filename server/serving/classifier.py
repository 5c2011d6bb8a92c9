"""The interface that the serving core needs of an engine, whether that runs in this process or in another."""

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
        """Whether any engine is up."""

    @property
    def away(self) -> Sequence[int]:
        """The numbers of the engines that are down."""

    def has(self, model: str) -> bool:
        """Whether an engine that is up has the model with this id."""

    def check_admission(self, permits: int = 1, within_s: float = math.inf) -> None:
        """Refuse a request that could not be admitted now, before any work is spent on it.

        Raises:
            ServiceError: ENGINE_UNAVAILABLE, QUEUE_FULL, OVERLOADED if the answer would take longer than `within_s`,
                or INVALID_PARAMETER if there are never that many permits.
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

        `top_k` None asks for the logits of all classes, which averages need. While `follow` returns another question
        about the same pixels, it is asked with the same permits; the last answers are returned. Features and activation
        maps are included only for models whose manifest has them.

        Cancelling the call abandons the work: any part that has not started never will.

        Raises:
            ServiceError: the image was not admitted, is not an image, or took too long, or the engine failed.
        """
