import random
import threading
from itertools import count, islice, pairwise, takewhile
from statistics import mean, stdev

import pytest
import uvloop

from loadtest import loops
from loadtest.connection import request
from loadtest.loops import OpenLoop, OpenWindow, Photo, Target, poisson
from tests.loadtest.serving import answer, fake_server

FULL = (429, b'{"code": "queue_full"}')


def send(
    base_url: str,
    per_s: float,
    *,
    deadline_s: float,
    sockets: int = 64,
    warm_up_s: float = 0.0,
    tail_s: float | None = None,
) -> OpenWindow[int]:
    """Count requests for half a second at `per_s`; sending goes on for another deadline, or `tail_s`."""
    url = f"{base_url}/classify"
    photo = Photo(request(url, b"photo"), top1=7)
    readings = count()
    loop = OpenLoop(Target(url), [photo], deadline_s, sockets)
    return uvloop.run(loop.run(per_s, warm_up_s, 0.5, lambda: next(readings), tail_s=tail_s))


def test_every_request_that_is_due_has_one_outcome() -> None:
    outcomes = {0: FULL, 1: None, 2: (500, b"?"), 3: (200, answer(8)), 4: (200, b"?")}
    with fake_server(lambda n: outcomes.get(n % 8, (200, answer(7)))) as url:
        window = send(url, 200, deadline_s=1.0)
    found = window.outcomes
    refused = sum(map(len, found.refused_s.values()))
    assert found.due == len(found.good_s) + len(found.late_s) + refused + found.wrong + found.lost + found.unsent
    assert set(found.refused_s) == {"queue_full", "status 500"}
    assert min(found.wrong, found.lost, len(found.good_s)) > 0
    assert (window.before, window.after) == (0, 1)


def test_a_server_that_does_not_answer_does_not_stop_the_requests() -> None:
    answering = threading.Event()
    came = threading.Semaphore(0)

    def when_told(_: int) -> tuple[int, bytes]:
        came.release()
        answering.wait()
        return 200, answer(7)

    def tell_after_ten() -> None:
        for _ in range(10):
            came.acquire()
        answering.set()

    with fake_server(when_told) as url:
        teller = threading.Thread(target=tell_after_ten)
        teller.start()
        window = send(url, 200, deadline_s=1.0)
        teller.join()
    assert window.most_sockets >= 10
    assert window.outcomes.lost == 0


def test_what_is_due_in_the_window_is_counted_and_after_its_deadline_late() -> None:
    with fake_server(lambda _: (200, answer(7))) as url:
        # Below 0, as a timer may fire, and a request be answered, before the millisecond that it is due in.
        found = send(url, 100, deadline_s=-0.01, warm_up_s=0.2, tail_s=0.0).outcomes
    due_s = takewhile(lambda at_s: at_s < 0.7, poisson(100, random.Random(0)))
    assert found.due == sum(at_s >= 0.2 for at_s in due_s)
    assert found.good_s == []
    assert found.late_s  # a busy machine may leave some unsent


def test_what_has_no_socket_is_unsent_and_not_lost() -> None:
    answering = threading.Event()

    def slowly(n: int) -> tuple[int, bytes]:
        if n == 0:
            answering.wait()
        return 200, answer(7)

    with fake_server(slowly) as url:
        teller = threading.Timer(0.8, answering.set)
        teller.start()
        window = send(url, 50, deadline_s=0.2, sockets=1)
        teller.join()
    assert window.most_sockets == 1
    assert window.outcomes.unsent > 0
    assert window.outcomes.lost == 0


def test_no_server_is_lost_requests() -> None:
    with fake_server(lambda _: FULL) as url:
        pass
    window = send(url, 20, deadline_s=0.1)
    assert window.outcomes.lost == window.outcomes.due > 0
    assert "no connection" in next(iter(window.faults))


def test_requests_come_at_the_rate_and_as_chance_has_it() -> None:
    due_s = list(islice(poisson(50.0, random.Random(0)), 20_000))
    gaps_s = [later - earlier for earlier, later in pairwise(due_s)]
    assert mean(gaps_s) == pytest.approx(1 / 50, rel=0.03)
    assert stdev(gaps_s) == pytest.approx(1 / 50, rel=0.03)  # as large as the mean: exponential
    assert due_s == list(islice(poisson(50.0, random.Random(0)), 20_000))


def test_a_closed_loop_counts_right_answers_and_names_the_others() -> None:
    outcomes = {1: (200, answer(8)), 2: (500, b"?"), 3: None}
    served = 0

    def serve(number: int) -> tuple[int, bytes] | None:
        nonlocal served
        served = number + 1
        return outcomes.get(number, (200, answer(7)))

    with fake_server(serve) as url:
        target = Target(f"{url}/classify")
        photo = Photo(request(target.url, b"photo"), top1=7)
        window = uvloop.run(loops.closed_loop(target, [photo], 2, 0.2, 0.5, lambda: served))
    assert 0 < len(window.latencies_s) <= window.after - window.before + 2  # without those of the warm-up
    assert len(window.batch_sizes) == len(window.latencies_s)
    assert set(window.faults) == {
        "class 8 for a photo that was first found to be 7",
        "status 500: ?",
        "connection lost: ConnectionError('the server has closed the connection')",
    }
