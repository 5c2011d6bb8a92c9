"""What an answer to `POST /classify` must look like."""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from loadtest.command import LoadTestError

TOP_K = 5
"""Classes in an answer, if the request does not say how many."""

_ROUNDING = 1e-5


class WrongAnswerError(LoadTestError):
    """The answer is an error, or cannot be right; the message says which."""


class Answer(NamedTuple):
    """The parts of a right answer that load tests use."""

    model: str
    top1: int
    batch_size: int


Parse = Callable[[int, bytes], Answer]
"""Turns status and body into an answer; raises WrongAnswerError."""


def parse(status: int, body: bytes) -> Answer:
    """Parse an answer: TOP_K classes, the most probable first, whose probabilities add up to at most 1.

    Raises:
        WrongAnswerError: the body is not so, or the status is not 200.
    """
    check_status(status, body)
    try:
        content = json.loads(body)
        probabilities = [prediction["probability"] for prediction in content["predictions"]]
        answer = Answer(content["model"], content["predictions"][0]["class_id"], content["batch_size"])
    except (ValueError, LookupError, TypeError) as error:
        raise unreadable(body, error) from error
    check_probabilities(probabilities)
    return answer


def check_status(status: int, body: bytes) -> None:
    """Check that the status is 200.

    Raises:
        WrongAnswerError: it is not.
    """
    if status != 200:
        raise WrongAnswerError(f"status {status}: {body[:200].decode(errors='replace')}")


def check_probabilities(probabilities: Sequence[float]) -> None:
    """Check that there are TOP_K, in descending order, that add up to at most 1.

    Raises:
        WrongAnswerError: there are not.
    """
    if len(probabilities) != TOP_K:
        raise WrongAnswerError(f"{len(probabilities)} predictions instead of {TOP_K}")
    if list(probabilities) != sorted(probabilities, reverse=True) or sum(probabilities) > 1 + _ROUNDING:
        raise WrongAnswerError(f"not probabilities in falling order: {probabilities}")


def unreadable(body: bytes, error: Exception) -> WrongAnswerError:
    """The error for a body that is not an answer."""
    return WrongAnswerError(f"not an answer, {error!r}: {body[:200].decode(errors='replace')}")


def code(body: bytes) -> str:
    """The `code` of a problem document; "" if the body is not one."""
    try:
        return str(json.loads(body)["code"])
    except (ValueError, LookupError, TypeError):
        return ""
