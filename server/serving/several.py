"""Several images of one request: all are answered or none is, or each has an outcome of its own."""

import asyncio
from collections.abc import Callable, Sequence

from server.engine.decoding import Image
from server.errors import Code, ServiceError
from server.serving.outcomes import Outcome
from server.serving.plan import Answer, Plan
from server.serving.service import Service


async def classify_all(service: Service, plan: Plan, images: Sequence[Image], received_s: float) -> list[Answer]:
    """Classify all images at one time. Cancelling the call gives all of them up.

    Raises:
        ServiceError: they cannot be admitted together, or the first failure of one of them.
    """
    service.shed(len(images) * plan.permits, plan.within_s(received_s))
    plan = service.canaries.chosen(plan, images[0])
    answers = await _classify_all(service, plan, images, received_s)
    if plan.instead and any(answer.plan.entry.name != plan.entry.name for answer in answers):  # one answers for all
        return await _classify_all(service, plan.instead, images, received_s)
    return answers


async def _classify_all(service: Service, plan: Plan, images: Sequence[Image], received_s: float) -> list[Answer]:
    if len(images) == 1:
        return [await service.classify(plan, images[0], received_s)]
    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(service.classify(plan, image, received_s)) for image in images]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in asked]


async def classify_each(
    service: Service, plan: Plan, images: Sequence[Callable[[], bytes]], received_s: float
) -> list[Answer | ServiceError]:
    """Classify each image as permits become free, and count each. `images` are read in threads, each in its turn.

    Cancelling the call gives all of them up.
    """
    plan = service.canaries.chosen(plan, b"")
    # What the engine runs and what it runs next: with more of them, single requests would wait longer for a decoder.
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
