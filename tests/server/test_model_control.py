"""What engine and HTTP workers are told while models change, in which order, and when callers get their answer."""

from pathlib import Path

import pytest

from server import repository
from server.control import Change, Changed, Load, Serve, Unload
from server.errors import Code, ServiceError
from server.model_control import ModelControl, Step, TellEngine, TellWorker, TellWorkers
from server.refusals import Cause, Refusal
from tests import tiny

WORKERS = ("http-0", "http-1")


class Simulated:
    """Two HTTP workers and an engine that serve a folder; `steps` abbreviates what they are told."""

    def __init__(self, folder: Path, *names: str) -> None:
        for name in names:
            tiny.write(folder, name)
        self.folder = folder
        self.control = ModelControl(repository.scan(folder))
        for worker in WORKERS:
            self.control.worker_started(worker)
        self.ids = {model.id: model.manifest.name for model in self.control.start_engine(0)}
        self.control.engine_ready(0, {}, 0)
        assert self.steps() == []

    def steps(self) -> list[str]:
        return [self._short(step) for step in self.control.steps()]

    def _short(self, step: Step) -> str:
        match step:
            case TellEngine(0, Load(model)):
                self.ids[model.id] = model.manifest.name
                return f"load {model.manifest.name}"
            case TellEngine(0, Unload(model_id)):
                return f"unload {self.ids[model_id]}"
            case TellWorkers(Serve(catalogue, generation, _)):
                return f"serve {' '.join(catalogue.versions)} as {generation}"
            case TellWorker(worker, Changed(number, error)):
                return f"{worker}: {number} {error.code if error else 'done'}"
        raise AssertionError(step)

    def scan(self) -> None:
        self.control.scanned(repository.scan(self.folder))

    def loaded(self, name: str, refusal: Refusal | None = None) -> None:
        (model_id,) = (model_id for model_id, its in self.ids.items() if its == name)
        self.control.loaded(0, model_id, refusal, 0)


def test_the_engine_loads_then_all_workers_serve_then_who_asked_is_told(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "a")
    control = simulated.control
    tiny.write(tmp_path, "b")
    simulated.scan()
    control.asked("http-0", Change(7, "b", "load"))
    assert simulated.steps() == ["load b"]
    assert simulated.steps() == []
    simulated.loaded("b")
    assert simulated.steps() == ["serve a b as 1"]
    control.serving("http-0", 1)
    assert simulated.steps() == []  # the caller may connect to the other worker
    control.serving("http-1", 1)
    assert simulated.steps() == ["http-0: 7 done"]
    assert simulated.steps() == []
    assert control.asked_for == ["b"]


def test_the_engine_lets_go_once_no_request_of_any_worker_needs_what_is_gone(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "a", "b")
    control = simulated.control
    control.asked("http-1", Change(1, "b", "unload"))
    assert simulated.steps() == ["serve a as 1"]
    for worker in WORKERS:
        control.serving(worker, 1)
    assert simulated.steps() == ["http-1: 1 done"]
    control.drained("http-0", 1)
    assert simulated.steps() == []
    control.drained("http-1", 1)
    assert simulated.steps() == ["unload b"]


def test_what_a_worker_says_of_an_older_catalogue_counts_for_no_newer_one(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "a", "b", "c")
    control = simulated.control
    for number, name in enumerate("cb", 1):
        control.asked("http-0", Change(number, name, "unload"))
        simulated.steps()
    for worker in WORKERS:
        control.serving(worker, 1)
        control.drained(worker, 1)
    assert simulated.steps() == []
    for worker in WORKERS:
        control.drained(worker, 2)
        control.drained(worker, 1)
    assert sorted(simulated.steps()) == ["unload b", "unload c"]


def test_who_asks_for_a_load_that_hangs_is_told_so(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "a")
    control = simulated.control
    tiny.write(tmp_path, "b")
    simulated.scan()
    control.asked("http-0", Change(7, "b", "load"))
    assert simulated.steps() == ["load b"]
    control.retry(1000)
    assert simulated.steps() == []
    control.retry(1060)
    assert simulated.steps() == ["serve a as 1"]
    for worker in WORKERS:
        control.serving(worker, 1)
    assert simulated.steps() == ["http-0: 7 model_unavailable"]


def test_a_worker_that_ends_holds_nobody_up_and_its_successor_hears_nothing_of_it(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "a", "b", "c")
    control = simulated.control
    control.asked("http-0", Change(1, "b", "unload"))
    control.asked("http-1", Change(2, "c", "unload"))
    control.asked("http-0", Change(3, "none", "unload"))
    control.worker_ended("http-0")
    assert simulated.steps() == ["serve a as 1"]
    control.worker_started("http-0")  # with the newest catalogue
    control.serving("http-1", 1)
    control.drained("http-1", 1)
    assert sorted(simulated.steps()) == ["http-1: 2 done", "unload b", "unload c"]


@pytest.mark.parametrize("action", ["load", "unload"])
def test_what_there_is_not_is_refused_at_once(tmp_path: Path, action: str) -> None:
    simulated = Simulated(tmp_path, "a")
    simulated.control.asked("http-0", Change(1, "none", "load" if action == "load" else "unload"))
    assert simulated.steps() == ["http-0: 1 unknown_model"]
    assert simulated.control.asked_for == []


def test_a_change_that_cannot_even_be_looked_at_is_answered(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "a")
    gone = ServiceError(Code.UNKNOWN_MODEL, "the repository is gone")
    simulated.control.refuse("http-1", Change(4, "a", "load"), gone)
    assert simulated.steps() == ["http-1: 4 unknown_model"]


@pytest.mark.parametrize(("cause", "code"), [("never", "model_refused"), ("not_now", "model_unavailable")])
def test_a_model_that_the_engine_refuses_is_told_with_its_code(tmp_path: Path, cause: str, code: str) -> None:
    simulated = Simulated(tmp_path, "a")
    tiny.write(tmp_path, "b")
    simulated.scan()
    simulated.control.asked("http-0", Change(1, "b", "load"))
    simulated.steps()
    simulated.loaded("b", Refusal(Cause(cause), "no memory"))
    assert simulated.steps() == ["serve a as 1"]  # with the reason in it
    for worker in WORKERS:
        simulated.control.serving(worker, 1)
    assert simulated.steps() == [f"http-0: 1 {code}"]


def test_without_an_engine_nothing_is_loaded_or_let_go_until_there_is_one(tmp_path: Path) -> None:
    simulated = Simulated(tmp_path, "a", "b")
    control = simulated.control
    control.engine_ended(0, 0)
    control.asked("http-0", Change(1, "b", "unload"))
    tiny.write(tmp_path, "c")
    simulated.scan()
    assert simulated.steps() == ["serve a as 1"]
    for worker in WORKERS:
        control.serving(worker, 1)
        control.drained(worker, 1)
    assert simulated.steps() == ["http-0: 1 done"]
    assert sorted(model.manifest.name for model in control.start_engine(0)) == ["a", "c"]
    control.engine_ready(0, {}, 0)
    assert simulated.steps() == ["serve a c as 2"]


def test_workers_are_told_where_a_model_is_once_another_engine_has_it(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    control = ModelControl(repository.scan(tmp_path), engines=2)
    control.worker_started("http-0")
    (model,) = control.start_engine(0)
    control.start_engine(1)
    control.engine_ready(0, {}, 0)
    control.engine_ready(1, {model.id: Refusal(Cause.NOT_NOW, "no memory")}, 0)
    assert (control.held(0), control.held(1)) == (frozenset([model.id]), frozenset())
    assert control.steps() == []
    assert control.retry(100)
    assert control.steps() == [TellEngine(1, Load(model))]
    control.loaded(1, model.id, None, 100)
    (step,) = control.steps()
    assert isinstance(step, TellWorkers)
    assert (step.message.generation, step.message.held) == (1, (frozenset([model.id]), frozenset([model.id])))
    assert control.steps() == []
