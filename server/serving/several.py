"""Requests for several images: answered all or nothing, or each image with its own outcome."""

import asyncio
from collections.abc import Callable, Sequence

from server.engine.decoding import Image
from server.errors import Code, ServiceError
from server.serving.outcomes import Outcome
from server.serving.plan import Answer, Plan
from server.serving.service import Service

_OF_ONE_IMAGE = frozenset({Code.EMPTY_BODY, Code.NOT_AN_IMAGE, Code.BROKEN_IMAGE, Code.TOO_MANY_PIXELS})
"""Codes whose detail says which of several images has the fault."""


async def classify_all(service: Service, plan: Plan, images: Sequence[Image], received_s: float) -> list[Answer]:
    """Classify all images at one time. Cancelling the call cancels all of them.

    Raises:
        ServiceError: they cannot be admitted together, or one of them failed: the first failure.
    """
    service.shed(len(images) * plan.permits, plan.within_s(received_s))
    plan = service.canaries.chosen(plan, images[0])
    answers = await _classify_all(service, plan, images, received_s)
    # One model must answer for all images: if the canary could not answer one, the main model answers all.
    if plan.instead and any(answer.plan.entry.name != plan.entry.name for answer in answers):
        return await _classify_all(service, plan.instead, images, received_s)
    return answers


async def _classify_all(service: Service, plan: Plan, images: Sequence[Image], received_s: float) -> list[Answer]:
    if len(images) == 1:
        return [await service.classify(plan, images[0], received_s)]

    async def classify(number: int, image: Image) -> Answer:
        try:
            return await service.classify(plan, image, received_s)
        except ServiceError as error:
            if error.code not in _OF_ONE_IMAGE:
                raise
            raise ServiceError(error.code, f"image {number} of {len(images)}: {error.detail}") from None

    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(classify(number, image)) for number, image in enumerate(images, 1)]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in asked]


async def classify_each(
    service: Service, plan: Plan, images: Sequence[Callable[[], bytes]], received_s: float
) -> list[Answer | ServiceError]:
    """Classify each image as permits become free, and count each. Threads read the `images`, each in its turn.

    Cancelling the call cancels all of them.
    """
    plan = service.canaries.chosen(plan, b"")
    # Enough for the engine's current batch and the next; more would make single requests wait longer for a decoder.
    window = asyncio.Semaphore(max(service.settings.decode_threads, 2 * plan.max_batch))

    async def classify(read: Callable[[], bytes], outcome: Outcome) -> Answer:
        try:
            async with (
                asyncio.timeout(plan.within_s(received_s)),
                window,
                service.permits.taken(plan.permits),
            ):
                image = await asyncio.to_thread(read)
                if not image:
                    raise ServiceError(Code.EMPTY_BODY, "the file is empty")
                answer = await service.classify(plan, image, received_s, patient=True)
        except TimeoutError:
            raise ServiceError(Code.DEADLINE_EXCEEDED, "the answer was not ready within the time limit") from None
        outcome.answered([answer])
        return answer

    async def result(read: Callable[[], bytes]) -> Answer | ServiceError:
        try:
            with Outcome(service.metrics, plan.labels) as outcome:
                return await classify(read, outcome)
        except ServiceError as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(result(read)) for read in images]
    return [task.result() for task in tasks]
