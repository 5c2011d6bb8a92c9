from collections import Counter
from itertools import count

from loadtest.descent import REPEATS, Candidate, Descent

AXES = {"batch": ["1", "2", "4", "8"], "threads": ["1", "2", "3"]}


def valley(candidate: Candidate) -> float:
    """Best at batch 4 and threads 2; the default is batch 1 and threads 1."""
    batch, threads = int(candidate.get("batch", "1")), int(candidate.get("threads", "1"))
    return 100 - 5 * abs(batch - 4) - 10 * abs(threads - 2)


def test_each_name_gets_its_best_value() -> None:
    assert Descent(valley).best(AXES) == {"batch": "4", "threads": "2"}


def test_defaults_stay_where_nothing_is_better_by_more_than_noise() -> None:
    assert Descent(lambda candidate: 102 if candidate else 100).best(AXES) == {}
    assert Descent(lambda candidate: 104 if candidate else 100).best({"batch": ["8"]}) == {"batch": "8"}


def test_one_lucky_measurement_does_not_win() -> None:
    times: Counter[str] = Counter()

    def lucky_once(candidate: Candidate) -> float:
        batch = candidate.get("batch", "1")
        times[batch] += 1
        return 200 if (batch, times[batch]) == ("8", 1) else 100

    assert Descent(lucky_once).best({"batch": ["8"]}) == {}


def test_a_machine_that_slows_down_all_the_time_does_not_favour_who_came_first() -> None:
    numbers = count()

    def drifting(candidate: Candidate) -> float:
        return (1.2 if candidate else 1.0) * 0.97 ** next(numbers)

    assert Descent(drifting).best({"batch": ["8"]}) == {"batch": "8"}


def test_the_hopeless_are_measured_once() -> None:
    asked: Counter[str] = Counter()

    def measure(candidate: Candidate) -> float:
        asked[candidate.get("batch", "default")] += 1
        return 10 if candidate.get("batch") == "2" else 100

    Descent(measure).best({"batch": ["2", "4"]})
    assert asked == {"default": REPEATS, "2": 1, "4": REPEATS}


def test_what_is_of_no_use_never_wins_even_against_nothing() -> None:
    assert Descent(lambda candidate: -1.0 if candidate else 0.0).best({"batch": ["2"]}) == {}


def test_when_time_is_up_the_best_so_far_is_the_answer() -> None:
    left = iter(range(5 * REPEATS + 1))  # for the default and four batch sizes, and then too few
    found = Descent(valley, has_time=lambda: next(left, None) is not None).best(AXES)
    assert found == {"batch": "4"}
