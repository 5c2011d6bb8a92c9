"""The engine core, with backends whose batches end when the test says so, and a clock that only the test moves."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from server.engine.backends import Outputs
from server.engine.classes import Classes, Extras
from server.engine.core import Engine, Outcome
from server.engine.scheduler import Job, Limits
from server.errors import Code, DeviceLostError, ServiceError

PATIENCE_S = 10.0
"""Only a failure waits for it."""
FOREVER = 1e9


class Picture(NamedTuple):
    pixels: NDArray[np.uint8]
    include: Extras = Extras.NONE
    top_k: int | None = 1


class Running(NamedTuple):
    """A batch in a backend."""

    images: Sequence[NDArray[np.uint8]]
    ending: Future[Outputs]
    wanted: Extras
    alone: bool

    @property
    def ids(self) -> list[int]:
        return [int(image[0, 0, 0]) for image in self.images]


class GatedBackend:
    """Each batch waits until the test ends it; an image's class is its first byte."""

    on_gpu = False
    extras_apart = False

    def __init__(self, instances: int = 1) -> None:
        self.instances = instances
        self.closed = False
        self.started: SimpleQueue[Running] = SimpleQueue()
        self.all: list[Running] = []

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        return self._run(images, wanted, alone=True)

    def run_beside(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        return self._run(images, wanted, alone=False)

    def _run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras, *, alone: bool) -> Outputs:
        running = Running(images, Future(), wanted, alone)
        self.all.append(running)
        self.started.put(running)
        return running.ending.result(PATIENCE_S)

    def close(self) -> None:
        self.closed = True


def answer_to(images: Sequence[NDArray[np.uint8]]) -> Outputs:
    count = len(images)
    first_bytes = np.array([[image[0, 0, 0]] for image in images], np.int32)
    return Outputs(np.ones((count, 1), np.float32), first_bytes, np.ones((count, 2), np.float32))


class Bench:
    """An engine with one model, "m", which a test drives step by step."""

    def __init__(self, limits: Limits | None = None, instances: int = 1) -> None:
        self.now_s = 0.0
        self.backend = GatedBackend(instances)
        self.woken: SimpleQueue[None] = SimpleQueue()
        self.told: list[list[int]] = []
        self.ends: list[tuple[list[int], float | None]] = []
        self.engine: Engine[Picture] = Engine(
            wake=lambda: self.woken.put(None),
            on_start=self.on_start,
            on_end=self.on_end,
            clock=lambda: self.now_s,
        )
        self.engine.add_model("m", self.backend, limits or Limits(max_batch=4, max_wait_s=0.0, queue_size=64))

    def on_start(self, jobs: Sequence[Job[Picture]]) -> None:
        self.told.append([int(job.payload.pixels[0, 0, 0]) for job in jobs])

    def on_end(self, jobs: Sequence[Job[Picture]], seconds: float | None) -> None:
        self.ends.append(([int(job.payload.pixels[0, 0, 0]) for job in jobs], seconds))

    def submit(self, *ids: int, deadline_s: float = FOREVER, quarantined: bool = False) -> None:
        for job_id in ids:
            picture = Picture(np.full((1, 1, 3), job_id, np.uint8))
            self.engine.submit("m", Job(job_id, self.now_s, deadline_s, picture, quarantined))

    def step(self) -> dict[int, int | Code]:
        """The outcome of each job: its class, or the code of its error."""
        return {int(str(outcome.job.id)): self.meaning(outcome) for outcome in self.engine.step()}

    @staticmethod
    def meaning(outcome: Outcome[Picture]) -> int | Code:
        result = outcome.result
        return result.code if isinstance(result, ServiceError) else int(result.indices[0])

    def started(self) -> Running:
        """The next batch that the backend has started."""
        return self.backend.started.get(timeout=PATIENCE_S)

    def end(self, running: Running, error: BaseException | None = None, answer: Outputs | None = None) -> None:
        """Let a batch end, and wait until the engine asks to be stepped."""
        if error is None:
            running.ending.set_result(answer or answer_to(running.images))
        else:
            running.ending.set_exception(error)
        self.woken.get(timeout=PATIENCE_S)

    def close(self) -> None:
        """End all threads, whatever the test left running."""
        waiter = threading.Thread(target=self.engine.close)
        waiter.start()
        while waiter.is_alive():
            for running in self.backend.all:
                running.ending.cancel()
            waiter.join(0.01)


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(closing(Bench(*args, **options)))


def test_every_job_of_a_batch_gets_its_own_answer(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(3, 1, 2)
    assert bench.step() == {}
    running = bench.started()
    assert running.ids == [3, 1, 2]
    bench.end(running)
    assert bench.step() == {3: 3, 1: 1, 2: 2}
    assert len(bench.engine) == 0


def test_a_result_tells_where_the_time_went(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.now_s = 10.0
    bench.submit(1, 2)
    bench.now_s = 12.0
    bench.step()
    running = bench.started()
    bench.now_s = 15.0
    bench.end(running)
    bench.now_s = 20.0
    for outcome in bench.engine.step():
        assert isinstance(outcome.result, Classes)
        assert outcome.result[3:6] == (2.0, 3.0, 2)


def test_a_lost_device_ends_the_engine(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(1)
    bench.step()
    bench.end(bench.started(), DeviceLostError("gone"))
    with pytest.raises(DeviceLostError):
        bench.engine.step()


def test_a_model_error_fails_its_batch_and_no_other(make_bench: MakeBench) -> None:
    bench = make_bench(Limits(max_batch=2, max_wait_s=0.0, queue_size=64))
    bench.submit(1, 2, 3, 4)
    bench.step()
    bench.end(bench.started(), RuntimeError("out of memory"))
    failed = bench.engine.step()
    assert {outcome.job.id: bench.meaning(outcome) for outcome in failed} == {
        1: Code.INFERENCE_FAILED,
        2: Code.INFERENCE_FAILED,
    }
    assert "RuntimeError: out of memory" in str(failed[0].result)
    bench.end(bench.started())
    assert bench.step() == {3: 3, 4: 4}


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_model_that_answers_for_other_than_its_batch_fails_it_and_no_other(make_bench: MakeBench, rows: int) -> None:
    bench = make_bench(Limits(max_batch=2, max_wait_s=0.0, queue_size=64))
    bench.submit(1, 2, 3)
    bench.step()
    bench.end(bench.started(), answer=answer_to([np.zeros((1, 1, 3), np.uint8)] * rows))
    assert bench.step() == {1: Code.INFERENCE_FAILED, 2: Code.INFERENCE_FAILED}
    bench.end(bench.started())
    assert bench.step() == {3: 3}


def test_cancelled_in_flight_spares_its_batchmates(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(1, 2, 3)
    bench.step()
    assert bench.engine.cancel(2) is None
    bench.end(bench.started())
    assert bench.step() == {1: 1, 2: 2, 3: 3}


def test_a_cancelled_job_never_reaches_the_backend(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(1)
    bench.step()
    bench.submit(2, 3)
    cancelled = bench.engine.cancel(2)
    assert cancelled
    assert cancelled.id == 2
    bench.end(bench.started())
    assert bench.step() == {1: 1}
    assert bench.started().ids == [3]


def test_what_is_unwanted_is_forgotten_and_the_rest_stays(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(9)
    bench.step()
    bench.submit(1, 2, 3, 4)
    bench.engine.cancel_where(lambda job: job.id in (1, 3, 9))
    assert len(bench.engine) == 3
    bench.end(bench.started())
    assert bench.step() == {9: 9}
    assert bench.started().ids == [2, 4]


def test_a_job_expires_on_time_though_a_batch_runs(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(1)
    bench.step()
    running = bench.started()
    bench.submit(2, deadline_s=5.0)
    bench.submit(3)
    assert bench.engine.next_event_s() == 5.0
    bench.now_s = 5.0
    assert bench.step() == {2: Code.DEADLINE_EXCEEDED}
    bench.end(running)
    assert bench.step() == {1: 1}
    assert bench.started().ids == [3]


def test_a_running_job_is_answered_though_its_deadline_has_passed(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(1, deadline_s=5.0)
    bench.step()
    bench.now_s = 6.0
    bench.end(bench.started())
    assert bench.step() == {1: 1}


def test_full_refuses_at_once_and_changes_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(Limits(max_batch=1, max_wait_s=0.0, queue_size=1))
    bench.submit(1)
    bench.step()
    bench.submit(2)
    with pytest.raises(ServiceError) as refused:
        bench.submit(3)
    assert refused.value.code is Code.QUEUE_FULL
    assert (len(bench.engine), bench.engine.queue_length("m")) == (2, 1)
    bench.end(bench.started())
    assert bench.step() == {1: 1}
    assert bench.started().ids == [2]


def test_a_model_that_is_not_loaded_is_refused(make_bench: MakeBench) -> None:
    bench = make_bench()
    with pytest.raises(ServiceError) as refused:
        bench.engine.submit("other", Job(1, 0.0, FOREVER, Picture(np.zeros((1, 1, 3), np.uint8))))
    assert refused.value.code is Code.UNKNOWN_MODEL
    assert len(bench.engine) == 0


def test_a_model_that_is_taken_away_fails_what_waits_and_ends_what_runs(make_bench: MakeBench) -> None:
    bench = make_bench(Limits(max_batch=1, max_wait_s=0.0, queue_size=9))
    bench.submit(1, 2)
    assert bench.step() == {}
    running = bench.started()
    failed = bench.engine.remove_model("m")
    assert [(outcome.job.id, bench.meaning(outcome)) for outcome in failed] == [(2, Code.ENGINE_UNAVAILABLE)]
    assert not bench.backend.closed  # its batch still runs
    bench.end(running)
    assert bench.step() == {1: 1}
    assert bench.backend.closed
    with pytest.raises(ServiceError):
        bench.submit(3)


def test_a_model_that_comes_later_is_served_as_well(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.engine.remove_model("m")
    assert bench.backend.closed
    bench.backend = GatedBackend()
    bench.engine.add_model("m", bench.backend, Limits(max_batch=1, max_wait_s=0.0, queue_size=1))
    bench.submit(4)
    bench.step()
    bench.end(bench.started())
    assert bench.step() == {4: 4}


def test_pixels_are_read_where_they_lie_and_not_before_the_batch_starts(make_bench: MakeBench) -> None:
    bench = make_bench()
    pixels = np.zeros((1, 1, 3), np.uint8)
    bench.engine.submit("m", Job(1, 0.0, FOREVER, Picture(pixels)))
    pixels[...] = 7
    bench.step()
    running = bench.started()
    assert running.ids == [7]
    assert running.images[0] is pixels


def test_at_most_as_many_batches_run_as_there_are_instances(make_bench: MakeBench) -> None:
    bench = make_bench(Limits(max_batch=1, max_wait_s=0.0, queue_size=9), instances=2)
    bench.submit(1, 2, 3)
    bench.step()
    first, second = bench.started(), bench.started()
    bench.step()
    assert bench.told == [[1], [2]]
    bench.end(second if second.ids == [2] else first)
    assert bench.step() == {2: 2}
    assert bench.started().ids == [3]


def test_a_model_of_one_instance_never_runs_beside_another(make_bench: MakeBench) -> None:
    limits = Limits(max_batch=1, max_wait_s=0.0, queue_size=9)
    bench = make_bench(limits, instances=2)
    whole = GatedBackend()
    whole.started, whole.all = bench.backend.started, bench.backend.all
    bench.engine.add_model("whole", whole, limits)
    bench.submit(1)
    bench.engine.submit("whole", Job(2, 1.0, FOREVER, Picture(np.full((1, 1, 3), 2, np.uint8))))
    bench.now_s = 2.0
    bench.submit(3)
    for job_id in (1, 2, 3):
        bench.step()
        assert bench.told == [[each] for each in range(1, job_id + 1)]
        bench.end(bench.started())


def test_a_batch_is_alone_if_none_runs_and_none_starts_beside_it(make_bench: MakeBench) -> None:
    bench = make_bench(Limits(max_batch=1, max_wait_s=0.0, queue_size=9), instances=2)
    bench.submit(1)
    bench.step()
    bench.submit(2, 3)
    bench.step()
    running = sorted((bench.started(), bench.started()), key=lambda one: one.ids)
    assert [(one.ids, one.alone) for one in running] == [([1], True), ([2], False)]
    for one in running:
        bench.end(one)
    bench.submit(4)
    bench.step()
    running = sorted((bench.started(), bench.started()), key=lambda one: one.ids)
    assert [(one.ids, one.alone) for one in running] == [([3], False), ([4], False)]
    for one in running:
        bench.end(one)


def test_each_batch_is_told_of_at_its_end_whether_it_fails_or_not(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(1, 2)
    bench.step()
    assert bench.ends == []
    bench.end(bench.started(), RuntimeError("a model's own"))
    bench.submit(3)
    bench.step()
    running = bench.started()
    bench.now_s = 2.0
    bench.end(running)
    bench.step()
    assert bench.ends == [([1, 2], None), ([3], 2.0)]


def test_the_start_of_the_oldest_batch_tells_of_a_stall(make_bench: MakeBench) -> None:
    bench = make_bench(Limits(max_batch=1, max_wait_s=0.0, queue_size=9), instances=2)
    assert bench.engine.oldest_start_s() is None
    for started_s in (1.0, 2.0):
        bench.now_s = started_s
        bench.submit(int(started_s))
        bench.step()
    first, second = bench.started(), bench.started()
    if first.ids != [1]:
        first, second = second, first
    assert bench.engine.oldest_start_s() == 1.0
    bench.end(first)
    bench.step()
    assert bench.engine.oldest_start_s() == 2.0
    bench.end(second)
    bench.step()
    assert bench.engine.oldest_start_s() is None


def test_measured_latency_keeps_later_batches_within_their_deadlines(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(1, 2)
    bench.step()
    running = bench.started()
    bench.now_s = 10.0
    bench.end(running)
    bench.step()
    bench.submit(3, 4, deadline_s=15.0)
    bench.step()
    assert bench.started().ids == [3]


def test_close_waits_for_running_batches(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(1)
    bench.step()
    running = bench.started()
    about_to_close = threading.Event()

    def end_then() -> None:
        about_to_close.wait(PATIENCE_S)
        bench.end(running)

    with ThreadPoolExecutor(1) as aside:
        ended = aside.submit(end_then)
        about_to_close.set()
        bench.engine.close()
        assert bench.step() == {1: 1}
        ended.result()


class Interleaving(RuleBasedStateMachine):
    """In any order of submissions, cancellations, endings and time, every job ends exactly once."""

    @initialize(
        instances=st.integers(1, 3),
        limits=st.builds(Limits, st.integers(1, 4), st.sampled_from([0.0, 2.0]), st.integers(1, 6)),
    )
    def start(self, instances: int, limits: Limits) -> None:
        self.bench = Bench(limits, instances)
        self.instances = instances
        self.limits = limits
        self.deadline_s: dict[int, float] = {}
        self.waiting: list[int] = []
        self.running: list[Running] = []
        self.failing: set[int] = set()
        self.finished: set[int] = set()  # in the backend, not yet collected
        self.ended: dict[int, int | Code | None] = {}

    @rule(left=st.integers(-1, 9), quarantined=st.booleans(), many=st.integers(1, 4))
    def submit(self, left: int, quarantined: bool, many: int) -> None:
        for _ in range(many):
            job_id = len(self.deadline_s)
            deadline_s = self.bench.now_s + left
            if len(self.waiting) == self.limits.queue_size:
                with pytest.raises(ServiceError) as refused:
                    self.bench.submit(job_id, deadline_s=deadline_s, quarantined=quarantined)
                assert refused.value.code is Code.QUEUE_FULL
            else:
                self.bench.submit(job_id, deadline_s=deadline_s, quarantined=quarantined)
                self.deadline_s[job_id] = deadline_s
                self.waiting.append(job_id)

    @precondition(lambda self: self.deadline_s)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.deadline_s)))
        cancelled = self.bench.engine.cancel(job_id)
        assert (cancelled is not None) is (job_id in self.waiting)
        if cancelled:
            assert cancelled.id == job_id
            self.waiting.remove(job_id)
            self.end(job_id, None)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def finish(self, data: st.DataObject, fails: bool) -> None:
        running = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.finished |= set(running.ids)
        if fails:
            self.failing |= set(running.ids)
        self.bench.end(running, RuntimeError("a model's own") if fails else None)

    @rule(seconds=st.integers(0, 4))
    def step(self, seconds: int) -> None:
        self.bench.now_s += seconds
        told_before = len(self.bench.told)
        outcomes = self.bench.step()
        for job_id, meaning in outcomes.items():
            if job_id in self.finished:
                self.finished.remove(job_id)
                assert meaning == (Code.INFERENCE_FAILED if job_id in self.failing else job_id)
            else:
                assert meaning is Code.DEADLINE_EXCEEDED
                assert self.deadline_s[job_id] <= self.bench.now_s
                self.waiting.remove(job_id)
            self.end(job_id, meaning)
        assert not self.finished  # all finished batches were collected
        for together in self.bench.told[told_before:]:
            assert all(self.deadline_s[job_id] > self.bench.now_s for job_id in together)
            for job_id in together:
                self.waiting.remove(job_id)
        began = [self.bench.started() for _ in self.bench.told[told_before:]]
        assert sorted(running.ids for running in began) == sorted(self.bench.told[told_before:])
        self.running += began
        assert len(self.running) <= self.instances
        next_s = self.bench.engine.next_event_s()
        assert next_s is None or next_s > self.bench.now_s
        assert not (next_s is None and self.waiting)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "bench"):
            return
        in_flight = [job_id for running in self.running for job_id in running.ids]
        assert len(self.bench.engine) == len(self.waiting) + len(in_flight) + len(self.finished)
        assert set(self.waiting) | set(in_flight) | self.finished | set(self.ended) == set(self.deadline_s)
        assert (self.bench.engine.oldest_start_s() is None) is (not self.running and not self.finished)

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        while self.running:
            self.bench.end(self.running.pop())
        for outcome in self.bench.engine.step():
            self.end(int(str(outcome.job.id)), self.bench.meaning(outcome))
        while len(self.bench.engine):
            self.bench.now_s += 10.0
            for outcome in self.bench.engine.step():
                self.end(int(str(outcome.job.id)), self.bench.meaning(outcome))
            for _ in range(self.bench.backend.started.qsize()):
                self.bench.end(self.bench.started())
        self.bench.engine.close()
        assert set(self.ended) == set(self.deadline_s)

    def end(self, job_id: int, meaning: int | Code | None) -> None:
        assert job_id not in self.ended
        self.ended[job_id] = meaning


Interleaving.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestEveryInterleavingEndsEachJobOnce = Interleaving.TestCase


def test_a_batch_fetches_what_its_jobs_include_and_each_gets_its_own(make_bench: MakeBench) -> None:
    bench = make_bench()
    wishes = [Extras.NONE, Extras.FEATURES, Extras.HEATMAP]
    for job_id, include in enumerate(wishes):
        picture = Picture(np.full((1, 1, 3), job_id, np.uint8), include)
        bench.engine.submit("m", Job(job_id, 0.0, FOREVER, picture))
    bench.engine.step()
    running = bench.started()
    assert running.wanted == Extras.FEATURES | Extras.HEATMAP
    features, maps = np.arange(6, dtype=np.float32).reshape(3, 2), np.ones((3, 1, 2, 2), np.float32)
    bench.end(running, answer=answer_to(running.images)._replace(features=features, activation_maps=maps))
    answers = [outcome.result for outcome in bench.engine.step()]
    found = [(each.features.tolist(), each.activation_maps.size) for each in answers if isinstance(each, Classes)]
    assert found == [([], 0), ([2, 3], 0), ([], 4)]


def test_a_batch_of_plain_jobs_fetches_nothing_more(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.submit(1, 2)
    bench.step()
    running = bench.started()
    assert running.wanted == Extras.NONE
    bench.end(running)
