"""Which models are loaded and unloaded if not all fit, and what the HTTP workers are told."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from models import manifest
from models.manifest import Manifest
from server import repository
from server.control import Change, Changed, Demand, Hold, Load, Serve, Unload
from server.errors import Code, ServiceError
from server.fitting import Budget, Measured
from server.model_control import ModelControl, Step, TellEngine, TellWorker, TellWorkers
from server.refusals import Cause, Refusal
from tests import tiny

MB = 10**6
WORKER = "http-0"
BROKEN = Refusal(Cause.NEVER, "it is broken")
NO_MEMORY = Refusal(Cause.NOT_NOW, "no memory")


class Simulated:
    """HTTP workers, and engines whose loads end when the test says so; models have short names."""

    def __init__(
        self,
        folder: Path,
        names: str,
        budget: Budget,
        *,
        default: str | None = None,
        first: Sequence[str] = (),
        engines: int = 1,
        workers: Sequence[str] = (WORKER,),
    ) -> None:
        self.folder = folder
        self.now_s = 0.0
        for name in names:
            write(folder, name)
        self.control = ModelControl(
            repository.scan(folder, default_model=default), default, engines, budget=budget, first=first, patience_s=60
        )
        self.workers = workers
        self.drains = True
        self.running: list[set[str]] = []
        self.told: list[str] = []
        for worker in workers:
            self.control.worker_started(worker)
        self.ids: dict[str, str] = {}
        self.note(repository.scan(folder))
        self.bytes: dict[str, int] = {}
        self.loaded: list[list[str]] = [[] for _ in range(engines)]
        for engine in range(engines):
            self.start(engine)

    def note(self, catalogue: repository.Catalogue) -> None:
        self.ids |= {
            model.id: f"{key.name}{key.version if key.version > 1 else ''}" for key, model in catalogue.models.items()
        }

    def id_of(self, name: str) -> str:
        return [model_id for model_id, its in self.ids.items() if its == name][-1]

    def start(self, engine: int = 0) -> str:
        """Start an engine; returns the models that it starts with."""
        self.loaded[engine] = [self.ids[model.id] for model in self.control.start_engine(engine)]
        self.control.engine_ready(
            engine, {}, self.now_s, {self.id_of(name): self.measured(engine, name) for name in self.loaded[engine]}
        )
        self.steps()
        return " ".join(sorted(self.loaded[engine]))

    def measured(self, engine: int, name: str) -> Measured:
        return Measured(1.0, self.bytes.get(name, 0), sum(self.bytes.get(each, 0) for each in self.loaded[engine]))

    def steps(self) -> str:
        """All steps until none follow; every worker obeys at once, and says so if it `drains`."""
        said: list[str] = []
        while steps := self.control.steps():
            for step in steps:
                self.obey(step, said)
        return " ".join(said)

    def obey(self, step: Step, said: list[str]) -> None:
        match step:
            case TellEngine(engine, Load(model)):
                self.note(repository.Catalogue(self.folder, {model.key: model}, {}, {}, None))
                said.append(f"load {self.ids[model.id]}" + (f" at {engine}" if engine else ""))
            case TellEngine(engine, Unload(model_id)):
                self.loaded[engine].remove(self.ids[model_id])
                said.append(f"unload {self.ids[model_id]}" + (f" at {engine}" if engine else ""))
            case TellWorkers(Serve() | Hold() as message):
                for worker in self.workers:
                    self.control.serving(worker, message.generation)
                    if self.drains:
                        self.control.drained(worker, message.generation)
            case TellWorker(_, Changed(number, error)):
                said.append(f"{number} {error.code if error else 'done'}")

    def ask(self, *names: str, used: Iterable[str] = (), worker: str = WORKER) -> str:
        """Requests to a worker wait for `names`, and others were for `used`; returns the steps that follow."""
        ids = frozenset(map(self.id_of, names))
        self.control.demanded(worker, Demand(ids, tuple(map(self.id_of, used))))
        return self.steps()

    def end_load(self, name: str, refusal: Refusal | None = None, engine: int = 0) -> str:
        """An engine has loaded a model, or refused it; returns the steps that follow."""
        model_id = self.id_of(name)
        if refusal is None:
            self.loaded[engine].append(name)
        self.control.loaded(engine, model_id, refusal, self.now_s, None if refusal else self.measured(engine, name))
        return self.steps()

    def have(self, *names: str) -> None:
        """Load these, one after another, as requests ask for them."""
        for name in names:
            assert self.ask(name).endswith(f"load {name}")
            self.end_load(name)
            self.ask(used=[name])

    def scan(self) -> str:
        self.note(repository.scan(self.folder))
        self.control.scanned(repository.scan(self.folder))
        return self.steps()

    @property
    def usable(self) -> str:
        found = self.control.serve.usable
        assert found is not None
        return " ".join(sorted(self.ids[model_id] for model_id in found))


def write(folder: Path, name: str, version: int = 1, size_bytes: int = 0) -> Manifest:
    found = tiny.write(folder, name, version)
    if size_bytes:
        file = found.file.model_copy(update={"size_bytes": size_bytes})
        found = found.model_copy(update={"file": file})
        (folder / name / str(version) / manifest.FILE_NAME).write_text(found.model_dump_json())
    return found


def pin(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "serving.json").write_text('{"pinned": true}')


THREE = Budget(3, None)


def test_at_the_start_are_loaded_what_is_pinned_the_default_and_what_was_named_as_far_as_it_fits(
    tmp_path: Path,
) -> None:
    pin(tmp_path, "f")
    simulated = Simulated(tmp_path, "abcdefgh", THREE, default="c", first=["c", "b", "a"])
    assert sorted(simulated.loaded[0]) == ["b", "c", "f"]
    assert simulated.usable == "b c f"
    assert sorted(simulated.control.served.versions) == list("abcdefgh")
    assert simulated.control.states == {"loaded": 3, "unloaded": 5}


def test_without_a_default_model_nothing_is_loaded_before_it_is_asked_for(tmp_path: Path) -> None:
    assert Simulated(tmp_path, "ab", THREE).loaded == [[]]


def test_what_a_request_waits_for_is_loaded_once_and_then_the_least_recently_used_goes(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "abcde", THREE, workers=(WORKER, "http-1"))
    simulated.have(*"abc")
    simulated.ask(used="ba")
    assert simulated.ask("d") == "load d"
    assert simulated.ask("d", worker="http-1") == ""
    assert (simulated.usable, simulated.control.states) == ("a b c", {"loaded": 3, "loading": 1, "unloaded": 1})
    assert simulated.end_load("d") == "unload c"
    assert simulated.usable == "a b d"


def test_what_goes_is_not_let_go_of_while_a_request_needs_it(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "abcd", THREE)
    simulated.have(*"abc")
    simulated.ask("d")
    simulated.drains = False
    assert simulated.end_load("d") == ""
    assert simulated.usable == "b c d"  # no new request gets a
    assert simulated.ask("a", used="d") == ""
    assert simulated.usable == "a c d"  # so it need not be unloaded
    simulated.control.drained(WORKER, simulated.control.serve.generation)
    assert simulated.steps() == "unload b"


def test_no_more_than_one_is_loaded_beside_those_that_there_may_be(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "abcdef", THREE)
    simulated.have(*"abc")
    simulated.drains = False
    assert simulated.ask("d") == "load d"
    assert simulated.ask("d", "e") == ""
    assert simulated.end_load("d") == ""  # four are there
    simulated.control.drained(WORKER, simulated.control.serve.generation)
    assert simulated.steps() == "unload a load e"


def test_who_waits_longest_is_next_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "abcd", Budget(1, None))
    simulated.have("a")
    assert simulated.ask("d", used="a") == "load d"
    assert simulated.ask("d", "b", used="a") == ""
    assert simulated.end_load("d") == "unload a"
    assert simulated.ask("d", "b", "a") == ""  # some workers do not know yet that d is loaded
    assert simulated.usable == "d"
    assert simulated.ask("b", "a", used="d") == "load b"
    assert simulated.ask("b", "a", "d") == ""
    assert simulated.end_load("b") == "unload d"
    assert simulated.ask("a", "d", used="b") == "load a"


def test_a_load_that_fails_takes_no_good_model_down(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "abcd", THREE)
    simulated.have(*"abc")
    assert simulated.ask("d") == "load d"
    assert simulated.end_load("d", BROKEN) == ""
    assert simulated.usable == "a b c"
    with pytest.raises(ServiceError) as refused:
        simulated.control.served.resolve("d", None)
    assert refused.value.code is Code.UNKNOWN_MODEL
    assert simulated.ask("d") == ""  # it is refused for good


def test_what_was_refused_for_now_may_be_asked_for_again_after_a_while(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "ab", Budget(1, None), default="a")
    simulated.ask("b")
    simulated.end_load("b", NO_MEMORY)
    with pytest.raises(ServiceError) as refused:
        simulated.control.served.resolve("b", None)
    assert refused.value.code is Code.MODEL_UNAVAILABLE
    assert simulated.ask("b") == ""
    simulated.ask()
    assert simulated.control.retry(1.0)
    assert simulated.steps() == ""  # nobody asks for it
    assert simulated.ask("b") == "load b"
    assert simulated.end_load("b") == "unload a"


def test_what_is_pinned_stays(tmp_path: Path) -> None:
    pin(tmp_path, "a", "b")
    simulated = Simulated(tmp_path, "abcde", THREE)
    assert sorted(simulated.loaded[0]) == ["a", "b"]
    simulated.have(*"cde")
    assert sorted(simulated.loaded[0]) == ["a", "b", "e"]


def test_what_is_pinned_beyond_what_fits_is_refused_with_its_reason(tmp_path: Path) -> None:
    pin(tmp_path, "a", "b", "c")
    simulated = Simulated(tmp_path, "abcd", Budget(2, None))
    assert sorted(simulated.loaded[0]) == ["a", "b"]
    reasons = {key.name: refusal.reason for key, refusal in simulated.control.served.refused.items()}
    assert reasons == dict.fromkeys("cd", "it needs a place, beside 2 pinned; max_loaded is 2")


def test_a_model_that_is_pinned_or_not_any_more_is_not_loaded_again_for_that(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "abc", Budget(2, None))
    simulated.have("a", "b")
    pin(tmp_path, "a")
    assert simulated.scan() == ""
    simulated.have("c")
    assert sorted(simulated.loaded[0]) == ["a", "c"]


def test_members_are_loaded_together_or_refused_where_they_never_fit(tmp_path: Path) -> None:
    members = [write(tmp_path, name) for name in "abc"]
    tiny.write_ensemble(tmp_path, "two", members[:2])
    tiny.write_ensemble(tmp_path, "three", members)
    simulated = Simulated(tmp_path, "de", Budget(2, None))
    assert sorted(simulated.control.served.versions) == ["a", "b", "c", "d", "e", "two"]
    (reason,) = [refusal.reason for refusal in simulated.control.served.refused.values()]
    assert reason == "its 3 members need a place each; max_loaded is 2"
    simulated.have("d", "e")
    first = simulated.ask("a", "b").removeprefix("load ")
    second = "b" if first == "a" else "a"
    assert simulated.end_load(first) == f"unload d load {second}"
    assert simulated.end_load(second) == "unload e"
    assert simulated.usable == "a b"


def test_requests_of_a_worker_that_has_ended_wait_no_more(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "abc", Budget(1, None), default="a", workers=(WORKER, "http-1"))
    simulated.ask("b")
    simulated.ask("c", worker="http-1")
    simulated.control.worker_ended("http-1")
    simulated.workers = [WORKER]
    assert simulated.end_load("b") == "unload a"
    assert simulated.ask(used="b") == ""


def test_an_engine_that_dies_comes_back_with_what_it_had_and_loads_what_it_was_loading(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "abcd", Budget(2, None))
    simulated.have("a", "b")
    assert simulated.ask("c") == "load c"
    simulated.control.engine_ended(0, 0)
    assert simulated.usable == "a b"  # requests wait for the engine
    assert simulated.steps() == ""
    assert simulated.start() == "a b"
    assert simulated.control.serve.loading.keys() == {simulated.id_of("c")}
    assert simulated.end_load("c") == "unload a"


def test_a_model_that_engines_die_of_is_refused(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "ab", Budget(2, None), default="a")
    simulated.ask("b")
    for _ in range(2):
        simulated.control.engine_ended(0, 0)
        simulated.start()
    assert "died while they loaded it" in next(iter(simulated.control.served.refused.values())).reason
    assert (simulated.usable, simulated.control.serve.loading) == ("a", {})


def test_a_load_that_hangs_is_given_up_for_others_to_be_loaded_and_counts_if_it_ends(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "abc", Budget(1, None), default="a")
    assert simulated.ask("b") == "load b"
    assert simulated.ask("b", "c") == ""
    assert not simulated.control.retry(1000)
    assert not simulated.control.retry(1059)
    assert simulated.control.retry(1060)
    assert simulated.steps() == "load c"
    (refusal,) = simulated.control.served.refused.values()
    assert refusal == Refusal(Cause.NOT_NOW, "it was not loaded within 60 s")
    assert simulated.control.retry(1061)
    assert simulated.end_load("c") == "unload a"  # b is not loaded again: it still is loaded
    simulated.ask("b", used="c")
    assert simulated.end_load("b") == "unload c"


def test_a_new_version_of_what_is_loaded_is_loaded_before_it_is_served(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "ab", Budget(1, None), default="a")
    write(tmp_path, "a", 2)
    write(tmp_path, "b", 2)
    assert simulated.scan() == "load a2"
    assert sorted(simulated.control.served.versions["a"]) == [1]
    assert sorted(simulated.control.served.versions["b"]) == [1, 2]  # none of them is loaded
    assert simulated.end_load("a2") == "unload a"
    assert sorted(simulated.control.served.versions["a"]) == [1, 2]


def test_a_version_that_changes_is_served_as_it_was_until_its_change_is_loaded(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "ab", Budget(1, None), default="a")
    before = simulated.control.serve.usable
    (tmp_path / "a/serving.json").write_text('{"max_batch": 2}')
    (tmp_path / "b/serving.json").write_text('{"max_batch": 2}')
    assert simulated.scan() == "load a"
    assert simulated.control.serve.usable == before
    assert simulated.end_load("a") == "unload a"
    assert (simulated.usable, simulated.control.serve.usable != before) == ("a", True)
    (tmp_path / "a/1/manifest.json").write_text("{")
    simulated.scan()
    assert simulated.usable == "a"  # a broken change stops nothing that is served


def test_what_leaves_the_repository_is_let_go(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "ab", Budget(2, None), default="b")
    simulated.have("a")
    (tmp_path / "a").rename(tmp_path / ".a")
    assert simulated.scan() == "unload a"


def test_who_asks_for_a_model_by_its_name_is_answered_once_it_is_loaded(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "ab", Budget(1, None), default="a")
    simulated.control.asked(WORKER, Change(1, "b", "load"))
    assert simulated.steps() == "load b"
    assert simulated.end_load("b") == "unload a 1 done"
    simulated.control.asked(WORKER, Change(2, "b", "unload"))
    assert simulated.steps() == "unload b 2 done"
    simulated.control.asked(WORKER, Change(3, "b", "load"))
    assert simulated.steps() == "load b"
    assert simulated.end_load("b", BROKEN) == "3 model_refused"


def test_several_engines_have_the_same_and_one_of_them_loads_it_first(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "abc", Budget(1, None), default="a", engines=2)
    assert simulated.loaded == [["a"], ["a"]]
    assert simulated.ask("b") == "load b"
    assert simulated.end_load("b") == "load b at 1 unload a unload a at 1"
    assert simulated.usable == "b"
    assert simulated.end_load("b", engine=1) == ""
    assert simulated.ask(used="b") == ""


def in_memory(
    folder: Path, names: str, budget_mb: int, mb: int = 20, instances: int | None = None, **measured_mb: int
) -> Simulated:
    """Models with files of `mb` MB, that turn out to take `measured_mb` MB once they are loaded."""
    for name in names:
        write(folder, name, size_bytes=mb * MB)
    simulated = Simulated(folder, "", Budget(None, budget_mb * MB, instances))
    simulated.bytes = {name: size * MB for name, size in measured_mb.items()}
    return simulated


def test_room_is_made_before_a_model_is_loaded_where_memory_is_bounded(tmp_path: Path) -> None:
    simulated = in_memory(tmp_path, "abcd", 100, a=30, b=30, c=30)
    simulated.have(*"abc")
    assert simulated.ask("d") == "unload a load d"
    assert simulated.end_load("d") == ""


def test_what_the_others_took_beyond_their_files_is_expected_of_the_next_one(tmp_path: Path) -> None:
    simulated = in_memory(tmp_path, "abc", 100, a=40, b=40)
    simulated.have(*"ab")
    assert simulated.ask("c") == "unload a load c"  # 40 + 40 + 20, the size of its file, would fit


def test_a_model_whose_weights_will_be_there_twice_is_expected_to_take_twice_its_file(tmp_path: Path) -> None:
    simulated = in_memory(tmp_path, "ab", 70, instances=2, a=40, b=40)
    simulated.have("a")
    assert simulated.ask("b") == "unload a load b"  # 40 + 20, the size of its file, would fit


def test_where_the_memory_has_no_room_for_both_a_load_that_fails_has_the_other_loaded_again(tmp_path: Path) -> None:
    simulated = in_memory(tmp_path, "ab", 30)
    simulated.have("a")
    assert simulated.ask("b") == "unload a load b"
    assert simulated.end_load("b", BROKEN) == "load a"


def test_a_model_that_turns_out_too_large_is_let_go_of_and_refused(tmp_path: Path) -> None:
    simulated = in_memory(tmp_path, "abc", 100, a=30, b=120)
    simulated.have("a")
    assert simulated.ask("b") == "load b"
    assert simulated.end_load("b") == "unload b"
    (refusal,) = simulated.control.served.refused.values()
    assert refusal.reason == "it takes 120,000,000 bytes of memory; memory_budget is 100,000,000"
    assert simulated.usable == "a"
    assert simulated.ask("b") == ""
    simulated.have("c")


def test_a_guess_keeps_nothing_out_that_could_have_room(tmp_path: Path) -> None:
    simulated = in_memory(tmp_path, "ab", 50, a=45, b=30)
    simulated.have("a", "b")  # for all it knows, b might take 45 as well
    assert simulated.usable == "b"


def test_memory_that_belongs_to_no_model_leaves_less_for_them(tmp_path: Path) -> None:
    simulated = in_memory(tmp_path, "abcd", 100, a=20, b=20, c=20, d=20)
    simulated.have(*"abc")
    simulated.loaded[0].append("kept by the runtime")
    simulated.bytes["kept by the runtime"] = 30 * MB
    assert simulated.ask("d") == "load d"
    assert simulated.end_load("d") == "unload a"


def test_a_new_version_that_has_no_room_beside_the_old_one_is_refused(tmp_path: Path) -> None:
    simulated = in_memory(tmp_path, "a", 50, mb=30)
    (tmp_path / "a/serving.json").write_text('{"max_batch": 2}')
    assert simulated.scan() == ""
    simulated.control.asked(WORKER, Change(1, "a", "load"))
    assert simulated.steps() == "1 model_unavailable"
    (refusal,) = simulated.control.served.refused.values()
    takes = "it takes 30,000,000 bytes of memory, what it replaces 30,000,000"
    assert refusal.reason == f"{takes}; memory_budget is 50,000,000"
    assert simulated.usable == "a"
