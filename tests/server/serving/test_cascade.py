"""What a cascade does after its members' answers, tested with numbers as time and without an engine."""

from pathlib import Path

import numpy as np
import pytest

from models.manifest import CropCount, Rule
from server.engine.classes import Classes
from server.errors import Code, ServiceError
from server.repository import Catalogue, scan
from server.serving.cascade import TRY_EVERY, Descent, Pace
from server.serving.plan import Ask, Plan
from server.settings import Settings
from tests import tiny

DEADLINE_S = 100.0
LATE = ServiceError(Code.DEADLINE_EXCEEDED, "too late")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """`two` models; `deep` ends with the ensemble `pair`, `again` begins with a member of it; `mixed` has entropy."""
    repository = tmp_path_factory.mktemp("repository")
    first, second, third = (tiny.write(repository, name) for name in ("first", "second", "third"))
    pair = tiny.write_ensemble(repository, "pair", [second, third])
    tiny.write_cascade(repository, "two", [first, second])
    tiny.write_cascade(repository, "deep", [first, pair])
    tiny.write_cascade(repository, "again", [second, pair])
    tiny.write_cascade(repository, "mixed", [first, second], Rule(kind="entropy", threshold=-0.1))
    return scan(repository, default_model="two")


def descent_of(
    catalogue: Catalogue, model: str = "two", *, top_k: int | None = 1, crops: CropCount = 1, pace: Pace | None = None
) -> Descent:
    plan = Plan.of(Ask(model=model, top_k=top_k, crops=crops), catalogue, Settings())
    return Descent(plan, pace or Pace(), DEADLINE_S)


def ranked(margin: float, best: int = 0) -> list[Classes]:
    """About one crop, in classes `best` and the one after it."""
    probabilities = np.array([0.5 + margin / 2, 0.5 - margin / 2], np.float32)
    return [Classes(probabilities, np.array([best, best + 1], np.int32), np.empty(0, np.float32), 0.25, 0.5, 3)]


def logits(*rows: list[float]) -> list[Classes]:
    nothing = np.empty(0, np.float32)
    return [Classes(nothing, np.empty(0, np.int32), np.array(row, np.float32), 0.25, 0.5, 3) for row in rows]


def asked(descent: Descent) -> tuple[str, int | None] | None:
    question = descent.question
    return question and (question.model.key.name, question.top_k)


def given(descent: Descent) -> tuple[str, bool, list[int]]:
    assert descent.answer
    assert descent.question is None or descent.answer.cut_short
    return descent.answer.answered_by, descent.answer.cut_short, descent.answer.indices.tolist()


def test_who_is_sure_answers_and_nobody_else_is_asked(catalogue: Catalogue) -> None:
    descent = descent_of(catalogue)
    assert asked(descent) == ("first", 2)  # two classes, to tell how sure it is
    descent.told(ranked(0.25), 1.0)
    assert (asked(descent), given(descent), descent.passed_on) == (None, ("first", False, [0]), [])


def test_who_is_not_sure_passes_on_and_the_last_answers_in_any_case(catalogue: Catalogue) -> None:
    descent = descent_of(catalogue, top_k=2)
    descent.told(ranked(0.1), 1.0)
    assert (asked(descent), descent.passed_on) == (("second", 2), ["first"])
    descent.told(ranked(0.0, best=5), 2.0)
    assert (asked(descent), given(descent)) == (None, ("second", False, [5, 6]))


def test_what_was_asked_one_after_another_took_the_sum_of_it(catalogue: Catalogue) -> None:
    descent = descent_of(catalogue)
    descent.told([ranked(0.1)[0]._replace(decode_wait_s=1.0, decode_s=2.0)], 1.0)
    descent.told(ranked(0.1), 2.0)
    assert descent.answer
    assert (descent.answer.queue_s, descent.answer.inference_s, descent.answer.batch_size) == (0.5, 1.0, 3)
    assert (descent.answer.decode_wait_s, descent.answer.decode_s) == (1.0, 2.0)


def test_of_ten_crops_the_mean_is_sure_or_not(catalogue: Catalogue) -> None:
    unsure, sure = [0.0, 0.0, -9.0], [9.0, 0.0, -9.0]
    descent = descent_of(catalogue, crops=10)
    assert asked(descent) == ("first", None)
    descent.told(logits(*[unsure] * 2, *[sure] * 8), 1.0)  # each of the first two alone would have passed it on
    assert given(descent) == ("first", False, [0])
    descent = descent_of(catalogue, crops=10)
    descent.told(logits(*[sure] * 5, *[[0.0, 9.0, -9.0]] * 5), 1.0)  # each is sure, of another class
    assert asked(descent) == ("second", None)


def test_an_ensemble_answers_with_its_mean_and_its_members_are_asked_one_after_another(catalogue: Catalogue) -> None:
    descent = descent_of(catalogue, "deep")
    descent.told(ranked(0.0), 1.0)
    assert asked(descent) == ("second", None)
    descent.told(logits([2.0, 0.0]), 2.0)
    assert asked(descent) == ("third", None)
    descent.told(logits([0.0, 4.0]), 3.0)
    assert (asked(descent), given(descent)) == (None, ("pair", False, [1]))


def test_an_ensemble_that_ends_a_cascade_does_not_ask_its_members_again(catalogue: Catalogue) -> None:
    descent = descent_of(catalogue, "again")
    assert asked(descent) == ("second", None)  # all classes, for the ensemble's mean
    descent.told(logits([1.0, 0.9]), 1.0)
    assert asked(descent) == ("third", None)
    descent.told(logits([0.0, 4.0]), 2.0)
    assert (asked(descent), given(descent)) == (None, ("pair", False, [1]))
    assert descent.passed_on == ["second"]


def test_the_entropy_is_that_of_all_classes(catalogue: Catalogue) -> None:
    descent = descent_of(catalogue, "mixed")
    assert asked(descent) == ("first", None)
    descent.told(logits([9.0, 0.0, 0.0]), 1.0)
    assert given(descent) == ("first", False, [0])
    descent = descent_of(catalogue, "mixed")
    descent.told(logits([4.0, 0.0, 0.0]), 1.0)
    assert asked(descent) == ("second", 2)  # the last member always answers


def test_who_asks_for_every_class_gets_those_of_whoever_answers(catalogue: Catalogue) -> None:
    descent = descent_of(catalogue, top_k=None)
    descent.told(logits([9.0, 0.0, 1.0]), 1.0)
    assert given(descent) == ("first", False, [0, 2, 1])


def learned(catalogue: Catalogue, seconds: float) -> Pace:
    """A pace learned from a second member that took this long."""
    pace = Pace()
    descent = descent_of(catalogue, pace=pace)
    descent.told(ranked(0.0), 1.0)
    descent.told(ranked(0.0), 1.0 + seconds)
    return pace


def test_where_no_time_is_left_for_the_next_member_the_answer_that_is_there_is_given(catalogue: Catalogue) -> None:
    pace = learned(catalogue, 10.0)
    descent = descent_of(catalogue, pace=pace)
    descent.told(ranked(0.0), DEADLINE_S - 9.0)
    assert (asked(descent), given(descent), descent.passed_on) == (None, ("first", True, [0]), [])
    enough = descent_of(catalogue, pace=pace)
    enough.told(ranked(0.0), DEADLINE_S - 11.0)
    assert asked(enough) == ("second", 2)


def test_what_was_slow_once_is_tried_again(catalogue: Catalogue) -> None:
    pace = learned(catalogue, 10.0)
    tried = 0
    for _ in range(2 * TRY_EVERY):
        descent = descent_of(catalogue, pace=pace)
        descent.told(ranked(0.0), DEADLINE_S - 9.0)
        tried += descent.question is not None
    assert tried == 2


def test_a_deadline_that_passes_while_the_next_is_asked_leaves_the_answer_that_is_there(catalogue: Catalogue) -> None:
    pace = Pace()
    descent = descent_of(catalogue, pace=pace)
    descent.told(ranked(0.0), DEADLINE_S - 5.0)
    assert descent.failed(LATE, DEADLINE_S)
    assert given(descent) == ("first", True, [0])
    assert descent.passed_on == []
    again = descent_of(catalogue, pace=pace)
    again.told(ranked(0.0), DEADLINE_S - 5.0)  # the time that was too short before
    assert again.question is None


def test_whatever_else_fails_is_the_requests_failure(catalogue: Catalogue) -> None:
    descent = descent_of(catalogue)
    assert not descent.failed(LATE, DEADLINE_S)  # there is no answer yet
    descent.told(ranked(0.0), 1.0)
    for code in (Code.INFERENCE_FAILED, Code.ENGINE_CRASHED, Code.ENGINE_UNAVAILABLE, Code.QUEUE_FULL):
        assert not descent.failed(ServiceError(code, "it failed"), 2.0)


def test_a_cascade_takes_one_permit_for_each_crop(catalogue: Catalogue) -> None:
    for name in ("two", "deep"):
        assert Plan.of(Ask(model=name, crops=10), catalogue, Settings()).permits == 10


def test_a_member_that_is_gone_or_another_refuses_the_cascade(tmp_path: Path) -> None:
    first, second = tiny.write(tmp_path, "first"), tiny.write(tmp_path, "second")
    pair = tiny.write_ensemble(tmp_path, "pair", [first, second])
    tiny.write_cascade(tmp_path, "deep", [first, pair])
    tiny.write_cascade(tmp_path, "nested", [first, tiny.write_cascade(tmp_path, "two", [first, second])])  # type: ignore[list-item]
    tiny.write_cascade(tmp_path, "changed", [first, pair.model_copy(update={"fingerprint": "0" * 64})])
    found = scan(tmp_path, default_model="first")
    assert {key.name for key in found.recipes} == {"pair", "deep", "two"}
    reasons = {key.name: refusal.reason for key, refusal in found.refused.items()}
    assert reasons == {
        "nested": "its member two version 1 is not served",
        "changed": "its member pair version 1 is another file by now",
    }
    assert not found.without({"second"}).recipes
    assert {key.name for key in found.without({"pair"}).recipes} == {"two"}
    assert {key.name for key in scan(tmp_path, ("deep",)).models} == {"first", "second"}


def test_the_exact_cascade_of_the_default_model_is_the_default(tmp_path: Path) -> None:
    first, last = tiny.write(tmp_path, "efficientnet_lite0-int8"), tiny.write(tmp_path, "efficientnet_lite0")
    assert scan(tmp_path).default_model == "efficientnet_lite0"
    tiny.write_cascade(tmp_path, "efficientnet_lite0-exact", [first, last])
    assert scan(tmp_path).default_model == "efficientnet_lite0-exact"
    tiny.write(tmp_path, "resnet50")
    assert scan(tmp_path).default_model == "resnet50"
