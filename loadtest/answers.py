"""What an answer to `POST /classify` must look like."""

import json
from typing import NamedTuple

TOP_K = 5
"""Classes that the server answers with where a request does not say."""

_ROUNDING = 1e-5


class WrongAnswerError(Exception):
    """The answer is an error, or cannot be right; the message says which."""


class Answer(NamedTuple):
    """What is looked at of a right answer."""

    model: str
    top1: int
    batch_size: int


def parse(status: int, body: bytes) -> Answer:
    """The answer, if there are TOP_K classes, the most probable first, whose probabilities add up to at most 1.

    Raises:
        WrongAnswerError: they do not, or the status is not 200.
    """
    if status != 200:
        raise WrongAnswerError(f"status {status}: {body[:200].decode(errors='replace')}")
    try:
        content = json.loads(body)
        probabilities = [prediction["probability"] for prediction in content["predictions"]]
        answer = Answer(content["model"], content["predictions"][0]["class_id"], content["batch_size"])
    except (ValueError, LookupError, TypeError) as error:
        raise WrongAnswerError(f"not an answer, {error!r}: {body[:200].decode(errors='replace')}") from error
    if len(probabilities) != TOP_K:
        raise WrongAnswerError(f"{len(probabilities)} predictions instead of {TOP_K}")
    if probabilities != sorted(probabilities, reverse=True) or sum(probabilities) > 1 + _ROUNDING:
        raise WrongAnswerError(f"not probabilities in falling order: {probabilities}")
    return answer
