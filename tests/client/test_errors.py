"""What an unsuccessful answer means, from the service or from anything in between."""

import httpx
import pytest

from resnet_serving_client.errors import BusyError, ClientError, FailedError, NoAnswerError, RejectedError, error_of

PROBLEM = b'{"type": "urn:x", "title": "T", "status": 0, "code": "a_code", "detail": "D", "request_id": "r"}'
PAGE = b"<html>an error page</html>"


def answer(status: int, content: bytes, retry_after: str | None = None) -> httpx.Response:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return httpx.Response(status, headers=headers, content=content, request=httpx.Request("GET", "http://host/path"))


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (404, PROBLEM, RejectedError),
        (404, PAGE, RejectedError),
        (301, PAGE, RejectedError),
        (429, PROBLEM, BusyError),
        (429, PAGE, BusyError),
        (503, PAGE, BusyError),
        (500, PROBLEM, FailedError),
        (504, PROBLEM, FailedError),
        (502, PAGE, NoAnswerError),
        (500, b'{"code": 3}', NoAnswerError),
    ],
)
def test_status_and_document_say_what_it_is(status: int, content: bytes, kind: type[ClientError]) -> None:
    error = error_of(answer(status, content))
    assert type(error) is kind
    assert str(error) == "D (a_code)" if content == PROBLEM else f"http://host/path answers {status}" in str(error)


def test_a_redirect_says_where_the_service_is() -> None:
    response = answer(301, PAGE)
    response.headers["Location"] = "https://host/path"
    assert "is at https://host/path" in str(error_of(response))


def test_a_document_that_is_nested_too_deep_is_no_problem_document() -> None:
    assert isinstance(error_of(answer(500, b"[" * 200_000)), NoAnswerError)


@pytest.mark.parametrize(("sent", "seconds"), [("3", 3), (None, 0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0), ("-1", 0)])
def test_retry_after_is_a_number_of_seconds(sent: str | None, seconds: float) -> None:
    error = error_of(answer(503, PROBLEM, sent))
    assert isinstance(error, BusyError)
    assert error.retry_after_s == seconds
