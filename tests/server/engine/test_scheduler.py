"""The scheduler's promises: single situations first, then any sequence of calls, compared with a naive model."""

from itertools import count, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.engine.scheduler import EXPLORE_EVERY, Job, Limits, Priority, Scheduler, buckets

FOREVER = 1e9


def job(
    name: str,
    arrived_s: float = 0.0,
    deadline_s: float = FOREVER,
    *,
    quarantined: bool = False,
    priority: Priority = Priority.NORMAL,
) -> Job[None]:
    return Job(name, arrived_s, deadline_s, None, quarantined, priority)


def scheduler_of(
    *jobs: Job[None], max_batch: int = 8, max_wait_s: float = 0.0, queue_size: int = 64
) -> Scheduler[None]:
    """One model, "m", with these jobs in its queue."""
    scheduler: Scheduler[None] = Scheduler()
    scheduler.add_model("m", Limits(max_batch, max_wait_s, queue_size))
    for one in jobs:
        assert scheduler.submit("m", one)
    return scheduler


def observe(scheduler: Scheduler[None], latency_s: dict[int, float]) -> None:
    """Measure each of these sizes once."""
    for size, seconds in latency_s.items():
        scheduler.observe("m", size, seconds)


def taken(scheduler: Scheduler[None], now_s: float) -> str:
    """The names in the batch that starts now, in order."""
    return "".join(str(one.id) for one in scheduler.take(now_s).batch)


def test_a_lone_job_goes_at_once() -> None:
    assert taken(scheduler_of(job("a", arrived_s=5.0)), 5.0) == "a"


def test_what_waits_goes_together_in_order_up_to_max_batch() -> None:
    scheduler = scheduler_of(*map(job, "abcde"), max_batch=3)
    assert [taken(scheduler, 0.0), taken(scheduler, 0.0), taken(scheduler, 0.0)] == ["abc", "de", ""]


def test_the_wait_is_counted_from_the_arrival_of_the_first_job() -> None:
    scheduler = scheduler_of(job("a", arrived_s=1.0), max_wait_s=5.0)
    assert taken(scheduler, 4.0) == ""
    scheduler.submit("m", job("b", arrived_s=4.0))
    assert scheduler.next_event_s(4.0, free=1.0) == 6.0
    assert taken(scheduler, 5.9) == ""
    assert taken(scheduler, 6.0) == "ab"


def test_a_job_that_has_waited_elsewhere_does_not_wait_again() -> None:
    assert taken(scheduler_of(job("a", arrived_s=-5.0), max_wait_s=5.0), 0.0) == "a"


def test_a_full_batch_does_not_wait() -> None:
    assert taken(scheduler_of(job("a"), job("b"), max_batch=2, max_wait_s=5.0), 0.0) == "ab"


def test_the_wait_ends_in_time_for_the_earliest_deadline() -> None:
    scheduler = scheduler_of(job("a"), job("b", deadline_s=4.0), max_wait_s=50.0)
    observe(scheduler, {1: 1.0, 2: 1.0})
    assert scheduler.next_event_s(0.0, free=1.0) == 3.0
    assert taken(scheduler, 2.9) == ""
    assert taken(scheduler, 3.0) == "ab"


def test_full_refuses_at_once_and_changes_nothing() -> None:
    scheduler = scheduler_of(job("a"), job("b"), queue_size=2)
    assert not scheduler.submit("m", job("c", deadline_s=1.0))
    assert [one.id for one in scheduler] == ["a", "b"]
    assert scheduler.cancel("c") is None
    assert scheduler.next_event_s(0.0, free=0.0) == FOREVER
    assert taken(scheduler, 0.0) == "ab"


def test_a_full_queue_does_not_close_another_model() -> None:
    scheduler = scheduler_of(job("a"), queue_size=1)
    scheduler.add_model("other", Limits(1, 0.0, 1))
    assert scheduler.submit("other", job("b"))


def test_expired_never_runs() -> None:
    scheduler = scheduler_of(job("a", deadline_s=3.0), job("b", deadline_s=3.1), job("c", deadline_s=2.0))
    decided = scheduler.take(3.0)
    assert [one.id for one in decided.expired] == ["a", "c"]
    assert [one.id for one in decided.batch] == ["b"]
    assert scheduler.take(FOREVER).expired == []


def test_jobs_expire_while_every_slot_is_taken() -> None:
    scheduler = scheduler_of(job("a", deadline_s=3.0), job("b"))
    assert scheduler.next_event_s(0.0, free=0.0) == 3.0
    decided = scheduler.take(3.0, free=0.0)
    assert ([one.id for one in decided.expired], decided.batch) == (["a"], ())


@pytest.mark.parametrize("how", ["expired", "cancelled"])
def test_a_dead_job_frees_its_place_at_once(how: str) -> None:
    scheduler = scheduler_of(job("a", deadline_s=1.0), queue_size=1)
    if how == "cancelled":
        scheduler.cancel("a")
    else:
        scheduler.take(1.0)
    assert scheduler.submit("m", job("b"))
    assert taken(scheduler, 1.0) == "b"


def test_cancelled_never_runs_and_comes_back_once() -> None:
    a = job("a")
    scheduler = scheduler_of(a, job("b"))
    assert scheduler.cancel("a") is a
    assert scheduler.cancel("a") is None
    assert taken(scheduler, 0.0) == "b"
    assert scheduler.cancel("b") is None


def test_what_is_in_quarantine_runs_alone_and_spares_its_neighbours() -> None:
    scheduler = scheduler_of(job("a"), job("b", quarantined=True), job("c", quarantined=True), job("d"), job("e"))
    assert [taken(scheduler, 0.0) for _ in range(5)] == ["a", "b", "c", "de", ""]


def test_nobody_waits_for_company_that_a_suspect_keeps_away() -> None:
    scheduler = scheduler_of(job("a"), job("b", quarantined=True), max_wait_s=5.0)
    assert scheduler.next_event_s(0.0, free=1.0) == 0.0
    assert [taken(scheduler, 0.0), taken(scheduler, 0.0)] == ["a", "b"]


def test_a_batch_shrinks_until_it_meets_the_earliest_deadline() -> None:
    scheduler = scheduler_of(*(job(name, deadline_s=10.0) for name in "abcdefg"))
    observe(scheduler, {1: 4.0, 2: 4.0, 4: 4.0, 8: 6.5})
    assert taken(scheduler, 4.0) == "abcd"  # all seven count as eight: until 10.5; four: until 8
    assert taken(scheduler, 9.5) == "e"  # probably too late, but it is tried


def test_only_deadlines_in_the_batch_shrink_it() -> None:
    scheduler = scheduler_of(*map(job, "abcd"), job("e", deadline_s=2.0), max_batch=4)
    observe(scheduler, {1: 1.0, 2: 2.0, 4: 3.0})
    assert taken(scheduler, 0.0) == "abcd"


def test_latency_is_learned_for_each_bucket_and_new_measurements_weigh_a_fifth() -> None:
    def batch_when_left(seconds: float) -> str:
        scheduler = scheduler_of(*(job(name, deadline_s=seconds) for name in "abcd"))
        observe(scheduler, {1: 11.0, 2: 11.0, 4: 10.0, 8: 1000.0})
        scheduler.observe("m", 4, 20.0)
        scheduler.observe("m", 3, 1000.0)  # not a whole bucket: nobody knows whether it was padded
        return taken(scheduler, 0.0)

    assert batch_when_left(12.0) == "abcd"
    assert batch_when_left(11.9) == "ab"


@pytest.mark.parametrize(
    ("latency_s", "batches"),
    [
        ({1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3}, ["abcdefg"]),  # a GPU: seven cost what eight do, and four cost more each
        ({1: 1.0, 2: 1.9, 4: 4.1, 8: 8.5}, ["ab", "cd", "ef", "g"]),  # a CPU whose caches hold two
        ({1: 1.0, 2: 2.1, 4: 4.4, 8: 9.0}, ["a", "b", "c", "d", "e", "f", "g"]),
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 7.0}, ["abcdefg"]),  # the largest of the sizes that cost the same
    ],
)
def test_a_batch_has_the_size_that_costs_least_for_each_image(latency_s: dict[int, float], batches: list[str]) -> None:
    scheduler = scheduler_of(*map(job, "abcdefg"))
    observe(scheduler, latency_s)
    assert [taken(scheduler, 0.0) for _ in batches] == batches


def test_what_was_slow_once_is_tried_again() -> None:
    scheduler = scheduler_of()
    observe(scheduler, {1: 1.0, 2: 10.0, 4: 10.0, 8: 10.0})
    sizes = set()
    for turn in range(4 * EXPLORE_EVERY):
        for name in "abcdefgh":
            scheduler.submit("m", job(f"{name}{turn}"))
        while batch := scheduler.take(0.0).batch:
            sizes.add(len(batch))
            observe(scheduler, {len(batch): 2.5 if len(batch) == 4 else 10.0 if len(batch) > 1 else 1.0})
    assert sizes == {1, 2, 4, 8}


def test_a_higher_priority_goes_first_and_each_keeps_its_order() -> None:
    low, high = Priority.LOW, Priority.HIGH
    scheduler = scheduler_of(
        job("a", 1.0, priority=low), job("b", 2.0), job("c", 3.0, priority=high), job("d", 4.0, priority=high)
    )
    scheduler.add_model("other", Limits(8, 0.0, 9))
    scheduler.submit("other", job("x", 0.0))
    assert taken(scheduler, 9.0) == "cdba"
    scheduler.submit("m", job("e", 5.0, priority=low))
    assert [taken(scheduler, 9.0), taken(scheduler, 9.0)] == ["x", "e"]


def test_a_shadow_runs_when_nothing_else_waits_for_whatever_model() -> None:
    scheduler = scheduler_of(job("a", 0.0, quarantined=True, priority=Priority.SHADOW), max_wait_s=5.0)
    scheduler.add_model("other", Limits(8, 0.0, 9))
    scheduler.submit("other", job("x", 1.0, priority=Priority.LOW))
    scheduler.submit("m", job("b", 2.0))
    assert [taken(scheduler, 2.0), taken(scheduler, 2.0), taken(scheduler, 2.0)] == ["b", "x", "a"]


def test_shadows_keep_nobody_out_of_a_queue() -> None:
    shadow, low = Priority.SHADOW, Priority.LOW
    scheduler = scheduler_of(job("a", priority=shadow), job("b", priority=shadow), queue_size=2)
    assert not scheduler.submit("m", job("c", priority=shadow))
    assert scheduler.submit("m", job("d", priority=low))
    assert scheduler.submit("m", job("e"))
    assert not scheduler.submit("m", job("f"))
    assert taken(scheduler, 0.0) == "edab"


def test_what_was_never_measured_is_tried() -> None:
    assert taken(scheduler_of(*(job(name, deadline_s=0.1) for name in "abc")), 0.0) == "abc"


def test_models_are_served_in_the_order_of_their_oldest_jobs() -> None:
    scheduler = scheduler_of(job("a", 1.0), job("b", 3.0), job("c", 4.0), max_batch=1)
    scheduler.add_model("other", Limits(1, 0.0, 9))
    scheduler.submit("other", job("x", 2.0))
    scheduler.submit("other", job("y", 5.0))
    assert [taken(scheduler, 9.0) for _ in range(6)] == ["a", "x", "b", "c", "y", ""]


def test_a_model_that_still_waits_for_company_does_not_hold_up_another() -> None:
    scheduler = scheduler_of(job("a", 0.0), max_wait_s=5.0)
    scheduler.add_model("other", Limits(1, 0.0, 9))
    scheduler.submit("other", job("x", 1.0))
    assert [taken(scheduler, 1.0), taken(scheduler, 1.0), taken(scheduler, 5.0)] == ["x", "", "a"]


def test_a_model_that_needs_the_whole_engine_waits_for_it_and_is_not_overtaken() -> None:
    scheduler = scheduler_of(job("whole", arrived_s=1.0))
    scheduler.add_model("halves", Limits(1, 0.0, 9), 0.5)
    scheduler.submit("halves", job("a", arrived_s=0.0))
    scheduler.submit("halves", job("b", arrived_s=2.0))
    assert taken(scheduler, 2.0) == "a"
    assert not scheduler.take(2.0, free=0.5).batch
    assert scheduler.next_event_s(2.0, free=0.5) == FOREVER  # only the end of a batch can help
    assert [taken(scheduler, 3.0), taken(scheduler, 3.0)] == ["whole", "b"]


def test_one_of_higher_priority_that_fits_goes_before_the_one_that_waits_for_the_whole_engine() -> None:
    scheduler = scheduler_of(job("whole"))
    scheduler.add_model("halves", Limits(2, 5.0, 9), 0.5)
    scheduler.submit("halves", job("a", priority=Priority.HIGH))
    assert not scheduler.take(0.0, free=0.5).batch
    assert scheduler.next_event_s(0.0, free=0.5) == 5.0
    assert [one.id for one in scheduler.take(5.0, free=0.5).batch] == ["a"]


def test_an_empty_scheduler_never_wakes() -> None:
    scheduler = scheduler_of()
    assert scheduler.next_event_s(0.0, free=1.0) is None
    assert scheduler.next_event_s(0.0, free=0.0) is None


@given(st.integers(1, 1024))
def test_buckets_are_powers_of_two_and_the_largest_batch(max_batch: int) -> None:
    sizes = buckets(max_batch)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == max_batch
    assert sizes[:-1] == tuple(takewhile(lambda size: size < max_batch, (1 << n for n in count())))


LIMITS = st.builds(Limits, st.integers(1, 6), st.integers(0, 4).map(float), st.integers(1, 8))
ARRIVALS = st.tuples(
    st.integers(0, 5), st.integers(-1, 25), st.sampled_from([False] * 3 + [True]), st.sampled_from(Priority)
)
"""Seconds since it arrived, seconds until its deadline, quarantined, priority."""
COSTS = st.lists(st.integers(0, 6), min_size=6, max_size=6)
SHARES = st.sampled_from([1.0, 1 / 2, 1 / 3])
FREE = st.sampled_from([0.0, 1 / 3, 1 / 2, 2 / 3, 1.0])
"""Shares of the engine."""


class Schedule(RuleBasedStateMachine):
    """Any sequence of calls, checked by a naive model. All times are whole seconds, so nothing is rounded."""

    @initialize(models=st.lists(st.tuples(LIMITS, COSTS, SHARES), min_size=1, max_size=3))
    def start(self, models: list[tuple[Limits, list[int], float]]) -> None:
        self.now_s = 0.0
        self.submitted = 0
        self.ended: set[object] = set()
        self.limits = [limits for limits, _, _ in models]
        self.shares = [share for _, _, share in models]
        self.true_s = [costs for _, costs, _ in models]  # of each size of batch; constant
        self.known: list[dict[int, float]] = [{} for _ in models]
        self.batches = [0 for _ in models]
        self.waiting: list[list[Job[None]]] = [[] for _ in models]
        self.deadlines: list[list[float]] = [[] for _ in models]  # of all jobs, including those that are gone
        self.scheduler: Scheduler[None] = Scheduler()
        for model, limits in enumerate(self.limits):
            self.scheduler.add_model(model, limits, self.shares[model])

    @rule(data=st.data(), arrivals=st.lists(ARRIVALS, min_size=1, max_size=6))
    def submit(self, data: st.DataObject, arrivals: list[tuple[int, int, bool, Priority]]) -> None:
        model = data.draw(st.integers(0, len(self.limits) - 1))
        for age, left, quarantined, priority in arrivals:
            new: Job[None] = Job(self.submitted, self.now_s - age, self.now_s + left, None, quarantined, priority)
            self.submitted += 1
            counted = priority if priority == Priority.SHADOW else Priority.LOW  # shadows keep nobody else out
            full = sum(one.priority <= counted for one in self.waiting[model]) >= self.limits[model].queue_size
            assert self.scheduler.submit(model, new) is not full
            if not full:
                self.waiting[model].append(new)
                self.waiting[model].sort(key=lambda one: one.priority)  # stable: in order of arrival
                self.deadlines[model].append(new.deadline_s)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        wanted = data.draw(st.integers(0, self.submitted))
        found = next((one for queue in self.waiting for one in queue if one.id == wanted), None)
        assert self.scheduler.cancel(wanted) is found
        if found:
            self.leave(found)

    @rule(data=st.data())
    def measure(self, data: st.DataObject) -> None:
        model = data.draw(st.integers(0, len(self.limits) - 1))
        size = data.draw(st.integers(1, self.limits[model].max_batch))
        seconds = float(self.true_s[model][size - 1])
        if size in buckets(self.limits[model].max_batch):
            self.known[model][size] = seconds
        self.scheduler.observe(model, size, seconds)

    @rule(seconds=st.integers(0, 3), free=FREE)
    def take(self, seconds: int, free: float) -> None:
        self.now_s += seconds
        self.take_now(free)

    @rule(free=FREE)
    def sleep_until_the_next_event(self, free: float) -> None:
        while self.take_now(free):
            pass
        next_s = self.scheduler.next_event_s(self.now_s, free=free)
        if next_s is None:
            assert len(self.scheduler) == 0
            return
        assert next_s > self.now_s  # else the engine would spin
        self.now_s = max(self.now_s, next_s - 0.5)
        assert not self.take_now(free)  # else the engine would sleep too long
        self.now_s = next_s
        self.take_now(free)

    @invariant()
    def holds_what_waits(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        assert list(self.scheduler) == [one for queue in self.waiting for one in queue]
        assert len(self.scheduler) == sum(map(len, self.waiting))
        for model, limits in enumerate(self.limits):
            assert self.scheduler.queue_length(model) == len(self.waiting[model])
            assert sum(one.priority < Priority.SHADOW for one in self.waiting[model]) <= limits.queue_size

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.now_s += FOREVER
        self.take_now(free=1.0)
        assert len(self.scheduler) == 0

    def take_now(self, free: float) -> bool:
        """Take a batch, check every promise about it, and return whether anything left the queue."""
        decided = self.scheduler.take(self.now_s, free=free)
        dead = [one for queue in self.waiting for one in queue if one.deadline_s <= self.now_s]
        assert list(decided.expired) == dead
        for one in dead:
            self.leave(one)
        due = [model for model in range(len(self.limits)) if self.due(model)]
        batch = list(decided.batch)
        assert batch or not due or not free or self.a_larger_share_is_first(due, free)
        if batch:
            model = next(model for model, queue in enumerate(self.waiting) if batch[0] in queue)
            assert decided.model == model
            assert self.shares[model] <= free
            assert self.due(model, early=True)
            assert all(self.turn(other) >= self.turn(model) for other in due)
            self.check_batch(model, batch)
            for one in batch:
                self.leave(one)
        return bool(dead or batch)

    def turn(self, model: int) -> tuple[Priority, float]:
        first = self.waiting[model][0]
        return first.priority, first.arrived_s

    def a_larger_share_is_first(self, due: list[int], free: float) -> bool:
        too_large = [model for model, share in enumerate(self.shares) if share > free and self.due(model, early=True)]
        return any(self.turn(model) <= min(map(self.turn, due)) for model in too_large)

    def check_batch(self, model: int, batch: list[Job[None]]) -> None:
        queue, size = self.waiting[model], len(batch)
        assert batch == queue[:size]
        assert size <= self.limits[model].max_batch
        assert size == 1 or not any(one.quarantined for one in batch)
        if not batch[0].quarantined:
            together = len(list(takewhile(lambda one: not one.quarantined, queue)))
            most = min(together, self.limits[model].max_batch)
            sizes = {most, *(bucket for bucket in buckets(self.limits[model].max_batch) if bucket < most)}
            in_time = {one: self.predicted(model, one) / one for one in sizes if self.in_time(model, one)} or {1: 0.0}
            assert size in in_time
            self.batches[model] += 1
            if self.batches[model] % EXPLORE_EVERY:
                assert size == max(one for one in in_time if in_time[one] == min(in_time.values()))
        else:
            self.batches[model] += 1

    def in_time(self, model: int, size: int) -> bool:
        deadline_s = min(one.deadline_s for one in self.waiting[model][:size])
        return self.now_s + self.predicted(model, size) <= deadline_s

    def due(self, model: int, *, early: bool = False) -> bool:
        """Whether the model's next batch must start; `early`: or may, for the deadline of a job that has left."""
        queue, limits = self.waiting[model], self.limits[model]
        if not queue:
            return False
        deadlines = self.deadlines[model] if early else [one.deadline_s for one in queue]
        earliest_s = min(deadline_s for deadline_s in deadlines if deadline_s > self.now_s)
        return (
            len(queue) >= limits.max_batch
            or any(one.quarantined for one in queue)
            or self.now_s >= queue[0].arrived_s + limits.max_wait_s
            or self.now_s >= earliest_s - self.predicted(model, len(queue))
        )

    def bucket(self, model: int, size: int) -> int:
        return min(bucket for bucket in buckets(self.limits[model].max_batch) if bucket >= size)

    def predicted(self, model: int, size: int) -> float:
        return self.known[model].get(self.bucket(model, size), 0.0)

    def leave(self, one: Job[None]) -> None:
        assert one.id not in self.ended
        self.ended.add(one.id)
        for queue in self.waiting:
            if one in queue:
                queue.remove(one)


Schedule.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnySequenceKeepsThePromises = Schedule.TestCase
