"""Which models are loaded, served and unloaded while the repository changes."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from server import repository
from server.errors import Code, ServiceError
from server.refusals import Cause, Refusal
from server.repository import ModelKey
from server.rollout import Progress, Rollout
from tests import tiny

NOW_S = 100.0


def broken(reason: str) -> Refusal:
    return Refusal(Cause.NEVER, reason)


def started(folder: Path, refused: dict[str, str] | None = None) -> Rollout:
    """Serves what is in `folder`; the engine refused these models, by name."""
    rollout = Rollout(repository.scan(folder))
    models = rollout.start_engine(0)
    rollout.engine_ready(
        0,
        {model.id: broken((refused or {})[name]) for model in models if (name := name_of(model)) in (refused or {})},
        NOW_S,
    )
    return rollout


def name_of(model: repository.Model) -> str:
    return f"{model.manifest.name}{model.manifest.version}"


def served(rollout: Rollout) -> set[str]:
    return {name_of(model) for model in rollout.served.models.values()}


def load(rollout: Rollout, reason: str | None = None) -> list[str]:
    """Have the engine load, or refuse, what is missing."""
    missing = rollout.take_missing(0)
    for model in missing:
        rollout.loaded(0, model.id, broken(reason) if reason else None, NOW_S)
    return sorted(map(name_of, missing))


def write(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        tiny.write(folder, name[0], int(name[1]))


def test_a_new_version_is_served_once_it_is_loaded_and_beside_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    write(tmp_path, ["a2"])
    rollout.scanned(repository.scan(tmp_path))
    assert served(rollout) == {"a1"}
    (missing,) = rollout.take_missing(0)
    assert rollout.take_missing(0) == []  # each is loaded once
    assert rollout.outcome("a") is Progress.LOADING
    rollout.loaded(0, missing.id, None, NOW_S)
    assert served(rollout) == {"a1", "a2"}
    assert (rollout.outcome("a"), rollout.take_surplus(0)) == (Progress.SERVED, [])


def test_a_version_whose_file_changes_is_served_from_the_old_file_until_the_new_one_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    old = rollout.served.models[ModelKey("a", 1)].id
    (tmp_path / "a" / "serving.json").write_text('{"max_batch": 1}')
    rollout.scanned(repository.scan(tmp_path))
    assert rollout.served.models[ModelKey("a", 1)].id == old
    assert load(rollout) == ["a1"]
    assert rollout.served.models[ModelKey("a", 1)].id != old
    assert (rollout.take_surplus(0), rollout.take_surplus(0)) == ([old], [])


def test_a_change_while_the_first_engine_loads_comes_after_what_it_loads(tmp_path: Path) -> None:
    write(tmp_path, ["a1", "b1"])
    rollout = Rollout(repository.scan(tmp_path))
    rollout.start_engine(0)
    write(tmp_path, ["a2"])
    rollout.scanned(repository.scan(tmp_path))
    rollout.unload("b")
    assert served(rollout) == {"a1", "b1"}
    rollout.engine_ready(0, {}, NOW_S)
    assert served(rollout) == {"a1"}
    assert load(rollout) == ["a2"]
    assert served(rollout) == {"a1", "a2"}


@pytest.mark.parametrize("part", ["file", "manifest", "settings"])
def test_a_broken_change_takes_no_good_model_down(tmp_path: Path, part: str) -> None:
    write(tmp_path, ["a1", "b1"])
    rollout = started(tmp_path)
    if part == "manifest":
        (tmp_path / "a/1/manifest.json").write_text("{")
    else:
        (tmp_path / "a/serving.json").write_text("{}" if part == "file" else "{")
        if part == "file":
            (tmp_path / "a/serving.json").write_text('{"max_batch": 2}')
    rollout.scanned(repository.scan(tmp_path))
    assert load(rollout, "out of luck") == (["a1"] if part == "file" else [])
    assert served(rollout) == {"a1", "b1"}
    assert len(rollout.served.refused) == 1
    assert rollout.take_surplus(0) == []


def test_what_leaves_the_repository_is_let_go(tmp_path: Path) -> None:
    write(tmp_path, ["a1", "a2"])
    rollout = started(tmp_path)
    (tmp_path / "a/2").rename(tmp_path / "a/.gone")
    rollout.scanned(repository.scan(tmp_path))
    assert served(rollout) == {"a1"}
    assert len(rollout.take_surplus(0)) == 1


def test_a_version_that_leaves_is_served_until_its_successor_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    (tmp_path / "a/1").rename(tmp_path / "a/.gone")
    write(tmp_path, ["a2"])
    rollout.scanned(repository.scan(tmp_path))
    assert served(rollout) == {"a1"}
    assert load(rollout) == ["a2"]
    assert served(rollout) == {"a2"}


def test_unloaded_stays_unloaded_until_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, ["a1", "b1"])
    rollout = started(tmp_path)
    rollout.unload("a")
    rollout.scanned(repository.scan(tmp_path))
    assert (served(rollout), len(rollout.take_surplus(0)), load(rollout)) == ({"b1"}, 1, [])
    assert rollout.served.unloaded == {"a"}
    rollout.load("a")
    assert load(rollout) == ["a1"]
    assert (served(rollout), rollout.served.unloaded) == ({"a1", "b1"}, set())


def test_nobody_loads_or_unloads_what_there_is_not(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    for change in (rollout.load, rollout.unload):
        with pytest.raises(ServiceError) as refused:
            change("b")
        assert refused.value.code is Code.UNKNOWN_MODEL


def test_a_refused_model_is_tried_again_only_when_it_is_asked_for_or_changes(tmp_path: Path) -> None:
    write(tmp_path, ["a1", "b1"])
    rollout = started(tmp_path, {"b1": "no memory"})
    assert (served(rollout), rollout.served.refused) == ({"a1"}, {ModelKey("b", 1): broken("no memory")})
    rollout.scanned(repository.scan(tmp_path))
    assert load(rollout) == []
    assert rollout.outcome("b") == broken("no memory")
    rollout.scanned(repository.scan(tmp_path), {ModelKey("a", 1)})
    assert load(rollout) == []
    rollout.scanned(repository.scan(tmp_path), {ModelKey("b", 1)})
    assert load(rollout, "still none") == ["b1"]
    assert rollout.outcome("b") == broken("still none")
    rollout.load("b")
    assert load(rollout) == ["b1"]
    assert (served(rollout), rollout.served.refused) == ({"a1", "b1"}, {})


def test_the_default_model_stays_what_it_was(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    write(tmp_path, ["b1"])
    rollout.scanned(repository.scan(tmp_path))
    load(rollout)
    assert rollout.served.default_model == "a"


def test_a_default_model_that_was_asked_for_stays_it_also_while_it_is_gone(tmp_path: Path) -> None:
    write(tmp_path, ["a1", "b1"])
    rollout = Rollout(repository.scan(tmp_path, default_model="a"), "a")
    rollout.start_engine(0)
    rollout.engine_ready(0, {}, NOW_S)
    (tmp_path / "a").rename(tmp_path / ".a")
    rollout.scanned(repository.scan(tmp_path))
    assert (served(rollout), rollout.served.default_model) == ({"b1"}, "a")


def test_a_default_model_that_was_found_is_another_one_only_while_it_is_gone(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    write(tmp_path, ["b1"])
    text = (tmp_path / "a/1/manifest.json").read_text()
    (tmp_path / "a/1/manifest.json").write_text("{")
    rollout.scanned(repository.scan(tmp_path))
    assert rollout.served.default_model == "a"  # it is still served
    (tmp_path / "a/1/manifest.json").write_text(text)
    (tmp_path / "a").rename(tmp_path / ".a")
    rollout.scanned(repository.scan(tmp_path))
    assert rollout.served.default_model == "b"
    (tmp_path / ".a").rename(tmp_path / "a")
    rollout.scanned(repository.scan(tmp_path))
    assert rollout.served.default_model == "a"


def test_a_new_engine_gets_what_was_served_and_what_was_being_loaded(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    write(tmp_path, ["a2"])
    rollout.scanned(repository.scan(tmp_path))
    rollout.take_missing(0)
    rollout.engine_lost(0, NOW_S)
    assert served(rollout) == {"a1"}  # requests wait for it
    assert sorted(map(name_of, rollout.start_engine(0))) == ["a1", "a2"]
    rollout.engine_ready(0, {}, NOW_S)
    assert served(rollout) == {"a1", "a2"}


def test_a_model_that_engines_die_of_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    write(tmp_path, ["a2"])
    rollout.scanned(repository.scan(tmp_path))
    rollout.take_missing(0)
    rollout.engine_lost(0, NOW_S)
    rollout.start_engine(0)
    rollout.engine_lost(0, NOW_S)
    assert list(map(name_of, rollout.start_engine(0))) == ["a1"]
    rollout.engine_ready(0, {}, NOW_S)
    assert served(rollout) == {"a1"}
    assert rollout.outcome("a") == broken("2 inference engines died while they loaded it")
    assert not rollout.retry(1e9)  # it would crash the engine, and with it the other model


def test_only_the_model_that_an_engine_died_of_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    write(tmp_path, ["b1", "c1"])
    rollout.scanned(repository.scan(tmp_path))
    assert names(rollout.take_missing(0)) == ["b1"]
    assert rollout.take_missing(0) == []
    rollout.engine_lost(0, NOW_S)
    assert names(rollout.start_engine(0)) == ["a1", "b1", "c1"]
    rollout.engine_lost(0, NOW_S)
    assert names(rollout.start_engine(0)) == ["a1", "c1"]
    rollout.engine_ready(0, {}, NOW_S)
    assert served(rollout) == {"a1", "c1"}


def test_a_load_that_hangs_is_refused_for_now_and_keeps_no_other_from_being_loaded(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    write(tmp_path, ["b1", "c1"])
    rollout.scanned(repository.scan(tmp_path))
    (hanging,) = rollout.take_missing(0)
    assert (rollout.retry(NOW_S), rollout.retry(NOW_S + 59)) == (False, False)
    assert rollout.outcome("b") is Progress.LOADING
    assert rollout.retry(NOW_S + 60)
    assert rollout.outcome("b") == Refusal(Cause.NOT_NOW, "it was not loaded within 60 s")
    assert load(rollout) == ["c1"]
    assert rollout.retry(NOW_S + 120)
    assert load(rollout) == []  # it still is being loaded
    rollout.loaded(0, hanging.id, None, NOW_S + 180)
    assert (served(rollout), rollout.served.refused) == ({"a1", "b1", "c1"}, {})


def test_what_is_refused_for_now_is_loaded_again_later_and_later(tmp_path: Path) -> None:
    write(tmp_path, ["a1", "b1"])
    rollout = Rollout(repository.scan(tmp_path))
    a = next(model.id for model in rollout.start_engine(0) if name_of(model) == "a1")
    away = Refusal(Cause.NOT_NOW, "away")
    now_s, waits_s = 0.0, []
    rollout.engine_ready(0, {a: away}, now_s)
    for _ in range(9):
        assert (served(rollout), rollout.served.refused, load(rollout)) == ({"b1"}, {ModelKey("a", 1): away}, [])
        assert not rollout.retry(now_s)
        since_s = now_s
        while not rollout.retry(now_s):
            now_s += 0.5
        waits_s.append(now_s - since_s)
        assert rollout.served.refused == {ModelKey("a", 1): away}  # even during a retry
        assert [model.id for model in rollout.take_missing(0)] == [a]
        rollout.loaded(0, a, away, now_s)
    assert waits_s == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert rollout.retry(now_s + 60)
    rollout.take_missing(0)
    rollout.loaded(0, a, None, now_s)
    assert (served(rollout), rollout.served.refused) == ({"a1", "b1"}, {})
    assert not rollout.retry(1e9)


def test_a_request_for_what_is_refused_for_now_is_told_to_come_back(tmp_path: Path) -> None:
    write(tmp_path, ["a1", "b1"])
    rollout = started(tmp_path, {"b1": "broken"})
    rollout.engine_lost(0, NOW_S)
    (model,) = rollout.start_engine(0)
    rollout.engine_ready(0, {model.id: Refusal(Cause.NOT_NOW, "away")}, NOW_S)
    for name, code in (("a", Code.MODEL_UNAVAILABLE), ("b", Code.UNKNOWN_MODEL), ("c", Code.UNKNOWN_MODEL)):
        for version in (None, 1):
            with pytest.raises(ServiceError) as refused:
                rollout.served.resolve(name, version)
            assert refused.value.code is code
    assert rollout.served.default_model is None


def test_a_model_that_was_loaded_once_is_tried_again_though_engines_died_of_it(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = started(tmp_path)
    (model,) = rollout.start_engine(0)
    rollout.engine_ready(0, {model.id: Refusal(Cause.NOT_NOW, "no memory")}, NOW_S)
    assert rollout.retry(NOW_S + 1)
    rollout.take_missing(0)
    for _ in range(2):
        rollout.engine_lost(0, NOW_S + 1)
        started_with = rollout.start_engine(0)
    assert started_with == []  # the engine starts without it, for the others
    rollout.engine_ready(0, {}, NOW_S + 1)
    assert not rollout.retry(NOW_S + 2)
    assert rollout.retry(NOW_S + 3)
    assert load(rollout) == ["a1"]
    assert served(rollout) == {"a1"}


def two_started(folder: Path) -> Rollout:
    rollout = Rollout(repository.scan(folder), engines=2)
    for engine in range(2):
        rollout.start_engine(engine)
    for engine in range(2):
        rollout.engine_ready(engine, {}, NOW_S)
    return rollout


def names(models: Iterable[repository.Model]) -> list[str]:
    return sorted(map(name_of, models))


def test_a_new_model_is_loaded_by_one_engine_first_and_served_once_all_have_it(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = two_started(tmp_path)
    write(tmp_path, ["a2"])
    rollout.scanned(repository.scan(tmp_path))
    (new,) = rollout.take_missing(0)
    assert rollout.take_missing(1) == []
    rollout.loaded(0, new.id, None, NOW_S)
    assert (served(rollout), rollout.outcome("a")) == ({"a1"}, Progress.LOADING)
    assert rollout.take_surplus(0) == []
    assert names(rollout.take_missing(1)) == ["a2"]
    rollout.loaded(1, new.id, None, NOW_S)
    assert (served(rollout), rollout.outcome("a")) == ({"a1", "a2"}, Progress.SERVED)
    assert all(new.id in held for held in rollout.held)


def test_a_version_that_leaves_is_served_until_all_engines_have_its_successor(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = two_started(tmp_path)
    (tmp_path / "a/1").rename(tmp_path / "a/.gone")
    write(tmp_path, ["a2"])
    rollout.scanned(repository.scan(tmp_path))
    for engine in range(2):
        assert served(rollout) == {"a1"}
        (new,) = rollout.take_missing(engine)
        rollout.loaded(engine, new.id, None, NOW_S)
    assert served(rollout) == {"a2"}
    assert [len(rollout.take_surplus(engine)) for engine in range(2)] == [1, 1]


def test_what_one_engine_has_no_room_for_is_served_by_the_other_and_tried_again(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = two_started(tmp_path)
    write(tmp_path, ["b1"])
    rollout.scanned(repository.scan(tmp_path))
    (new,) = rollout.take_missing(0)
    rollout.loaded(0, new.id, None, NOW_S)
    rollout.take_missing(1)
    rollout.loaded(1, new.id, Refusal(Cause.NOT_NOW, "no memory"), NOW_S)
    assert (served(rollout), rollout.outcome("b"), rollout.served.refused) == ({"a1", "b1"}, Progress.SERVED, {})
    assert rollout.retry(NOW_S + 1)
    assert served(rollout) == {"a1", "b1"}
    assert (names(rollout.take_missing(0)), names(rollout.take_missing(1))) == ([], ["b1"])


def test_what_all_engines_refuse_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = two_started(tmp_path)
    write(tmp_path, ["b1"])
    rollout.scanned(repository.scan(tmp_path))
    for engine in range(2):
        assert rollout.outcome("b") is Progress.LOADING
        (new,) = rollout.take_missing(engine)
        rollout.loaded(engine, new.id, broken("not a model"), NOW_S)
    assert rollout.outcome("b") == broken("not a model")
    assert served(rollout) == {"a1"}


def test_an_engine_that_is_away_keeps_nothing_from_being_served(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = two_started(tmp_path)
    rollout.engine_lost(1, NOW_S)
    write(tmp_path, ["b1"])
    rollout.scanned(repository.scan(tmp_path))
    (new,) = rollout.take_missing(0)
    rollout.loaded(0, new.id, None, NOW_S)
    assert served(rollout) == {"a1", "b1"}
    assert names(rollout.start_engine(1)) == ["a1", "b1"]


def test_a_model_that_engines_die_of_never_takes_the_last_one_down(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = two_started(tmp_path)
    write(tmp_path, ["b1"])
    rollout.scanned(repository.scan(tmp_path))
    assert names(rollout.take_missing(0)) == ["b1"]
    rollout.engine_lost(0, NOW_S)
    assert rollout.take_missing(1) == []
    assert names(rollout.start_engine(0)) == ["a1"]
    rollout.engine_ready(0, {}, NOW_S)
    assert names(rollout.take_missing(1)) == ["b1"]
    rollout.engine_lost(1, NOW_S)
    outcome = rollout.outcome("b")
    assert isinstance(outcome, Refusal)
    assert (outcome.cause, outcome.reason) == (Cause.NEVER, "2 inference engines died while they loaded it")
    assert rollout.take_missing(0) == []


def test_engines_try_unproven_models_one_after_the_other(tmp_path: Path) -> None:
    write(tmp_path, ["a1"])
    rollout = two_started(tmp_path)
    write(tmp_path, ["b1", "c1"])
    rollout.scanned(repository.scan(tmp_path))
    (new,) = rollout.take_missing(0)
    assert rollout.take_missing(1) == []  # two of them could take down both engines
    rollout.loaded(0, new.id, None, NOW_S)
    assert [names(rollout.take_missing(engine)) for engine in range(2)] == [["c1"], ["b1"]]


def test_models_are_where_they_were_put(tmp_path: Path) -> None:
    write(tmp_path, ["a1", "b1", "c1"])
    (tmp_path / "b/serving.json").write_text('{"devices": [1]}')
    (tmp_path / "c/serving.json").write_text('{"devices": [1, 2]}')
    rollout = Rollout(repository.scan(tmp_path), engines=2)
    assert [names(rollout.start_engine(engine)) for engine in range(2)] == [["a1"], ["a1", "b1"]]
    rollout.engine_ready(0, {}, NOW_S)
    assert rollout.outcome("b") is Progress.LOADING
    rollout.engine_ready(1, {}, NOW_S)
    assert served(rollout) == {"a1", "b1"}
    assert rollout.served.refused[ModelKey("c", 1)] == broken(
        "serving.json puts it on devices 1, 2, and here they are 0 to 1"
    )
    (tmp_path / "b/serving.json").write_text('{"devices": [0]}')
    rollout.scanned(repository.scan(tmp_path))
    (moved,) = rollout.take_missing(0)
    assert rollout.take_missing(1) == []
    rollout.loaded(0, moved.id, None, NOW_S)
    assert (rollout.take_surplus(0), len(rollout.take_surplus(1))) == ([], 1)
