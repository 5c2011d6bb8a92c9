"""Which engine gets an image, with an array in place of the table that workers share."""

import numpy as np
import pytest

from server.engine.dispatch import FORGET, Engines

MODELS = frozenset({"a", "b"})


def engines(count: int = 2, *, workers: int = 1, row: int = 0) -> Engines:
    """Engines that are all up."""
    return up(Engines(np.zeros((workers, count)), row), count)


def up(found: Engines, count: int) -> Engines:
    for engine in range(count):
        found.up(engine, MODELS)
    return found


def submit(found: Engines, count: int, model: str = "a") -> list[int]:
    """The engines that get `count` images, of which none is answered meanwhile."""
    chosen = []
    for _ in range(count):
        engine = found.choose(model)
        assert engine is not None
        found.begin(engine, model)
        chosen.append(engine)
    return chosen


def test_images_go_where_the_least_is_under_way() -> None:
    found = engines(3)
    assert submit(found, 6) == [0, 1, 2, 0, 1, 2]
    found.end(1, found.begin(1, "a"))
    found.end(1, 1e-3)
    assert submit(found, 2) == [1, 0]


def test_all_workers_count_together_and_a_new_one_begins_with_nothing() -> None:
    table = np.zeros((2, 2))
    first, second = up(Engines(table, 0), 2), up(Engines(table, 1), 2)
    assert (submit(first, 1), submit(second, 1), submit(first, 1)) == ([0], [1], [1])
    assert submit(second, 1) == [0]
    up(Engines(table, 0), 2)  # the successor of the first
    assert table[0].tolist() == [0, 0]


def test_of_busy_ones_that_could_take_it_into_their_next_batch_the_first_to_be_chosen_gets_it() -> None:
    found = engines(2)
    for engine in range(2):
        for _ in range(8):
            found.learn(engine, "a", 8, 0.008)
    assert submit(found, 6) == [0, 1] * 3  # not where the last batch has only just begun
    found.end(0, 0.001)
    assert submit(found, 1) == [0]


def test_work_is_seconds_not_images() -> None:
    found = engines()
    for _ in range(100):
        found.learn(0, "a", 1, 0.1)
        found.learn(1, "b", 1, 0.001)
    assert submit(found, 1, "a") == [0]
    assert submit(found, 50, "b") == [1] * 50


def test_what_is_slow_is_given_less_and_is_tried_again_some_time() -> None:
    found = engines()
    for _ in range(200):
        found.learn(0, "a", 1, 0.010)
        found.learn(1, "a", 1, 0.001)
    chosen = submit(found, 20)
    assert chosen[0] == 1
    assert chosen.count(1) > 2 * chosen.count(0)
    lone = engines()
    for _ in range(100):
        lone.learn(0, "a", 1, 0.002)
        lone.learn(1, "a", 1, 0.001)
    tries = []
    for _ in range(round(10 / (1 - FORGET))):
        engine = lone.choose("a")
        assert engine is not None
        lone.end(engine, lone.begin(engine, "a"))
        lone.learn(engine, "a", 1, 0.001)
        tries.append(engine)
    assert tries[0] == 1
    assert 0 in tries  # it may be as fast as the other by now, which only a try can show


def test_an_engine_that_is_gone_or_lacks_the_model_gets_nothing() -> None:
    found = engines()
    found.hold([frozenset({"a"}), MODELS])
    assert submit(found, 3, "b") == [1, 1, 1]
    found.down(1, recovering=True)
    assert (found.choose("b"), found.has("b"), found.expects("b")) == (None, False, True)
    assert submit(found, 2) == [0, 0]
    found.down(1, recovering=False)
    assert not found.expects("b")
    assert (found.expects("a"), found.away, found.any_up, found.expected) == (True, [1], True, True)
    found.up(1, MODELS)
    assert submit(found, 1) == [1]  # its former load is forgotten


def test_what_is_to_go_is_still_submitted_for_who_has_begun_and_not_had_by_anybody_else() -> None:
    found = engines()
    found.hold([MODELS, MODELS], usable=frozenset({"a"}))
    assert (found.has("a"), found.has("b")) == (True, False)
    assert (found.choose("b") is None, found.expects("b")) == (False, True)
    found.hold([MODELS, MODELS])
    assert found.has("b")


def test_before_an_engine_is_there_it_may_have_anything() -> None:
    found = Engines(np.zeros((1, 2)), 0)
    found.hold([frozenset(), frozenset()])
    assert (found.expects("a"), found.choose("a"), found.expected, found.any_up) == (True, None, True, False)
    for engine in range(2):
        found.down(engine, recovering=False)
    assert not found.expected


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_answered_is_no_longer_under_way(count: int) -> None:
    table = np.zeros((1, count))
    found = up(Engines(table, 0), count)
    for seconds in (0.1, 0.7, 0.3):
        engine = found.choose("a")
        assert engine is not None
        work_s = found.begin(engine, "a")
        found.learn(engine, "a", 3, seconds)
        other = found.begin(engine, "a")
        found.end(engine, work_s)
        found.end(engine, other)
    assert table.tolist() == [[0.0] * count]
