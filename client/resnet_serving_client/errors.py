"""`ClientError` and its subclasses: why there is no classification."""

import json

import httpx

from resnet_serving_client.decoding import structured
from resnet_serving_client.responses import Problem

BUSY = {429, 503}


class ClientError(Exception):
    """Base class of all errors of this package; the message is one line for people."""


class NoAnswerError(ClientError):
    """No answer came, or not one of this service's: a wrong address, a lost connection, no time left."""


class MissingPackageError(ClientError):
    """The call needs a package that is not installed; nothing was sent."""


class ProblemError(ClientError):
    """The service answered with an error. `code` is stable, for programs; `detail` says what to do."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(f"{problem.detail} ({problem.code})")
        self.status = status
        self.code = problem.code
        self.title = problem.title
        self.detail = problem.detail
        self.request_id = problem.request_id


class RejectedError(ProblemError):
    """4xx: the image or a parameter is invalid, and would be rejected again."""


class FailedError(ProblemError):
    """5xx: the service could not answer this request."""


class BusyError(ProblemError):
    """429, 503: the service is busy. The client retried until the deadline left no time for another attempt."""

    def __init__(self, status: int, problem: Problem, retry_after_s: float) -> None:
        super().__init__(status, problem)
        self.retry_after_s = retry_after_s


def error_of(response: httpx.Response) -> ClientError:
    """The error for an unsuccessful answer, including one from a proxy or a dying process."""
    status = response.status_code
    try:
        problem = structured(json.loads(response.content), Problem)
    except (ValueError, RecursionError):
        detail = f"{response.url} answers {status} {response.reason_phrase}"
        if response.has_redirect_location:
            detail = f"{detail}, and is at {response.headers['Location']}: give the address of the service itself"
        if status >= 500 and status not in BUSY:
            return NoAnswerError(detail)
        problem = Problem(response.reason_phrase, f"http_{status}", detail, "")
    if status in BUSY:
        return BusyError(status, problem, _seconds(response.headers.get("Retry-After", "")))
    return FailedError(status, problem) if status >= 500 else RejectedError(status, problem)


def _seconds(retry_after: str) -> float:
    """Retry-After in seconds; 0, which leaves the usual pause, if it is a date: this service never sends one."""
    return float(retry_after) if retry_after.isdecimal() else 0.0
