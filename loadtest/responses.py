"""What an answer to `POST /classify` must look like."""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from loadtest.command import LoadTestError

TOP_K = 5
"""Classes that the server answers with where a request does not say."""

_ROUNDING = 1e-5


class WrongAnswerError(LoadTestError):
    """The answer is an error, or cannot be right; the message says which."""


class Answer(NamedTuple):
    """What is looked at of a right answer."""

    model: str
    top1: int
    batch_size: int


Parse = Callable[[int, bytes], Answer]
"""Status and body to an answer; raises WrongAnswerError."""


def parse(status: int, body: bytes) -> Answer:
    """The answer, if there are TOP_K classes, the most probable first, whose probabilities add up to at most 1.

    Raises:
        WrongAnswerError: they do not, or the status is not 200.
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
    """See that it is a success.

    Raises:
        WrongAnswerError: it is not.
    """
    if status != 200:
        raise WrongAnswerError(f"status {status}: {body[:200].decode(errors='replace')}")


def check_probabilities(probabilities: Sequence[float]) -> None:
    """See that there are TOP_K, falling, that add up to at most 1.

    Raises:
        WrongAnswerError: it is otherwise.
    """
    if len(probabilities) != TOP_K:
        raise WrongAnswerError(f"{len(probabilities)} predictions instead of {TOP_K}")
    if list(probabilities) != sorted(probabilities, reverse=True) or sum(probabilities) > 1 + _ROUNDING:
        raise WrongAnswerError(f"not probabilities in falling order: {probabilities}")


def unreadable(body: bytes, error: Exception) -> WrongAnswerError:
    """Describe an answer that is none."""
    return WrongAnswerError(f"not an answer, {error!r}: {body[:200].decode(errors='replace')}")


def code(body: bytes) -> str:
    """The `code` of a problem document; "" where it is none."""
    try:
        return str(json.loads(body)["code"])
    except (ValueError, LookupError, TypeError):
        return ""
