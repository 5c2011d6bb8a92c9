"""When a request is sent again, with a clock that only the test moves."""

import math
import threading

import pytest

from resnet_serving_client.attempts import FIRST_PAUSE_S, LONGEST_PAUSE_S, MOST_LOST, Attempts
from resnet_serving_client.errors import BusyError, ClientError, FailedError, NoAnswerError, RejectedError
from resnet_serving_client.responses import Problem

PROBLEM = Problem("", "a_code", "", "")
LOST = NoAnswerError("lost")


def busy(retry_after_s: float = 0) -> BusyError:
    return BusyError(429, PROBLEM, retry_after_s)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_pauses_double_up_to_the_longest() -> None:
    attempts = Attempts(math.inf)
    for attempt in range(100):
        longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
        assert longest_s / 2 <= attempts.pause_s(busy()) <= longest_s


def test_nobody_comes_back_before_the_time_that_was_named_nor_all_at_once() -> None:
    pauses_s = {Attempts(60).pause_s(busy(3)) for _ in range(50)}
    assert min(pauses_s) > 3
    assert len(pauses_s) > 1


def test_a_pause_that_would_end_after_the_deadline_is_not_begun() -> None:
    attempts = Attempts(2)
    with pytest.raises(BusyError):
        attempts.pause_s(busy(2))


def test_the_deadline_counts_from_the_first_attempt() -> None:
    clock = Clock()
    attempts = Attempts(10, clock=clock)
    attempts.pause_s(busy(5))
    clock.now_s += 6
    assert attempts.left_s() == pytest.approx(4)
    with pytest.raises(BusyError):
        attempts.pause_s(busy(5))


def test_a_deadline_that_never_comes_is_a_time_that_sockets_can_wait() -> None:
    assert Attempts(math.inf).left_s() < threading.TIMEOUT_MAX


def test_no_time_left_is_still_a_time() -> None:
    clock = Clock()
    attempts = Attempts(1, clock=clock)
    clock.now_s += 2
    assert attempts.left_s() > 0


@pytest.mark.parametrize("error", [RejectedError(404, PROBLEM), FailedError(500, PROBLEM), ClientError("other")])
def test_what_would_fail_again_is_not_sent_again(error: ClientError) -> None:
    with pytest.raises(ClientError) as raised:
        Attempts(60).pause_s(error)
    assert raised.value is error


def test_a_lost_connection_is_tried_again_a_few_times() -> None:
    attempts = Attempts(math.inf)
    for _ in range(MOST_LOST - 1):
        attempts.pause_s(LOST)
    with pytest.raises(NoAnswerError):
        attempts.pause_s(LOST)


def test_being_told_to_wait_is_no_lost_connection() -> None:
    attempts = Attempts(math.inf)
    for _ in range(3 * MOST_LOST):
        attempts.pause_s(busy())
    attempts.pause_s(LOST)
