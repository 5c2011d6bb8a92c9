"""Why there is no classification: `ClientError` and what it can be."""

import json

import httpx

from resnet_serving_client.decoding import structured
from resnet_serving_client.responses import Problem

BUSY = {429, 503}


class ClientError(Exception):
    """The root of all errors of this package; the message is one line for people."""


class NoAnswerError(ClientError):
    """No answer came, or none that this service gives: a wrong address, a lost connection, no time left."""


class MissingPackageError(ClientError):
    """What was asked for needs a package that is not installed; nothing was sent."""


class ProblemError(ClientError):
    """The service said no. `code` is stable, for programs; `detail` says what to do."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(f"{problem.detail} ({problem.code})")
        self.status = status
        self.code = problem.code
        self.title = problem.title
        self.detail = problem.detail
        self.request_id = problem.request_id


class RejectedError(ProblemError):
    """4xx: it is the image or a parameter, and would be rejected again."""


class FailedError(ProblemError):
    """5xx: the service could not answer this request."""


class BusyError(ProblemError):
    """429, 503: not now. It was tried again until the deadline left no time for it."""

    def __init__(self, status: int, problem: Problem, retry_after_s: float) -> None:
        super().__init__(status, problem)
        self.retry_after_s = retry_after_s


def error_of(response: httpx.Response) -> ClientError:
    """The error that an answer without success stands for, also where a proxy or a dying process gave it."""
    status = response.status_code
    try:
        problem = structured(json.loads(response.content), Problem)
    except ValueError:
        detail = f"{response.url} answers {status} {response.reason_phrase}"
        if status >= 500 and status not in BUSY:
            return NoAnswerError(detail)
        problem = Problem(response.reason_phrase, f"http_{status}", detail, "")
    if status in BUSY:
        return BusyError(status, problem, _seconds(response.headers.get("Retry-After", "")))
    return FailedError(status, problem) if status >= 500 else RejectedError(status, problem)


def _seconds(retry_after: str) -> float:
    """0 where it is a date, which this service never sends: then the usual pause is made."""
    return float(retry_after) if retry_after.isdecimal() else 0.0
