"""The HTTP worker's side of the engine, with a real socket, real shared memory, and a fake engine."""

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.manifest import Manifest, Preprocessing
from server.engine import life
from server.engine.channel import Channel
from server.engine.classes import Classes, Question, average
from server.engine.decoding import Decoders
from server.engine.messages import Answer, Cancel, Dropped, Failure, Reply, Submit, decode_request, encode
from server.engine.remote import RemoteEngine
from server.errors import Code, ServiceError
from server.repository import Model
from server.slots import Slots
from tests import tiny

PATIENCE_S = 10.0
"""Only a failure waits for it."""
FOREVER_S = 1e6
NO_IMAGE = 255


class PlayedEngine:
    """The engine's end of the socket; the test decides what it sends."""

    def __init__(self, address: str, slots: Slots) -> None:
        self.address = address
        self._slots = slots
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        self._channel: Channel | None = None
        self._waiting: deque[Submit | Cancel] = deque()

    @property
    def channel(self) -> Channel:
        if self._channel is None:
            self._channel = Channel(self._listener.accept()[0])
        return self._channel

    def close(self) -> None:
        """Close everything, as a crash does."""
        self.channel.close()
        self._listener.close()

    async def receive(self) -> Submit | Cancel:
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.channel.fileno(), readable.set)
        try:
            while not self._waiting:
                await asyncio.wait_for(readable.wait(), PATIENCE_S)
                readable.clear()
                self._waiting.extend(map(decode_request, self.channel.receive()))
        finally:
            loop.remove_reader(self.channel.fileno())
        return self._waiting.popleft()

    async def arrived(self) -> list[Submit | Cancel]:
        """The requests that have arrived, or do so within a moment; more may be on their way."""
        requests = []
        with contextlib.suppress(TimeoutError):
            while True:
                requests.append(await asyncio.wait_for(self.receive(), 0.002))
        return requests

    async def submitted(self) -> Submit:
        request = await self.receive()
        assert isinstance(request, Submit)
        return request

    async def cancelled(self) -> Cancel:
        request = await self.receive()
        assert isinstance(request, Cancel)
        return request

    async def reply(self, *replies: Reply) -> None:
        assert self.channel.send(encode(replies))

    async def answer(self, *requests: Submit) -> None:
        """Classify each by the pixels in its slot, all in one message."""
        await self.reply(*(self.answer_to(request) for request in requests))

    def answer_to(self, request: Submit) -> Answer:
        classes = np.array([self.pixel(request)], np.int32)
        logits = np.arange(8, dtype=np.float32) == classes
        if request.top_k is None:
            return Answer(request.id, b"", b"", logits.astype(np.float32).tobytes(), 0.25, 0.5, 3)
        return Answer(request.id, np.ones(1, np.float32).tobytes(), classes.tobytes(), b"", 0.25, 0.5, 3)

    def start(self, *requests: Submit) -> None:
        """Mark them as running: if the engine dies now, they are held responsible."""
        self._slots.running[[request.slot for request in requests]] = True

    def pixel(self, request: Submit) -> int:
        pixels = self._slots.pixels(request.slot, (4, 4, 3))
        assert (pixels == pixels[0, 0, 0]).all()
        return int(pixels[0, 0, 0])


class Bench:
    """A client with `count` slots. The image of class 7 is the byte 7; it decodes when its gate opens."""

    def __init__(self, manifest: Manifest, count: int, threads: int, folder: Path) -> None:
        self.manifest = manifest
        self.model = Model.of(manifest)
        self.count = count
        self.pending = 0
        self.begun: list[int] = []
        self.decoded: list[int] = []
        self.gates: dict[int, threading.Event] = {}
        self.slots = Slots(count + 3, 4 * 4 * 3)
        self.decoders = Decoders(self.decode, threads)
        self.remote = RemoteEngine(self.slots, range(3, count + 3), self.decoders, self.set_pending)
        self._addresses = (f"{folder}/engine-{n}" for n in itertools.count())
        self._engines: list[PlayedEngine] = []

    def set_pending(self, pending: int) -> None:
        self.pending = pending

    def decode(self, data: bytes, preprocessing: Preprocessing, outs: Sequence[NDArray[np.uint8]]) -> tuple[int, int]:
        assert preprocessing == self.manifest.preprocessing
        self.begun.append(data[0])
        gate = self.gates.get(data[0])
        assert gate is None or gate.wait(PATIENCE_S)
        self.decoded.append(data[0])
        if data[0] == NO_IMAGE:
            raise ServiceError(Code.NOT_AN_IMAGE, "not an image")
        for out in outs:
            out[...] = data[0]
        return 6, 4

    def engine_up(self) -> PlayedEngine:
        self._engines.append(PlayedEngine(next(self._addresses), self.slots))
        self.remote.engine_up(0, self._engines[-1].address, frozenset({self.model.id}))
        return self._engines[-1]

    def engine_down(self, *, recovering: bool = True) -> None:
        self._engines[-1].close()
        self.remote.engine_down(0, recovering=recovering)

    def classify(self, image: int, seconds: float = FOREVER_S, *, gated: bool = False) -> "asyncio.Task[Classes]":
        if gated:
            self.gates[image] = threading.Event()
        deadline_s = time.monotonic() + seconds

        async def alone() -> Classes:
            (classes,) = await self.remote.classify(bytes([image]), self.model, 5, deadline_s)
            return classes

        return asyncio.create_task(alone())

    def classify_crops(self, image: int) -> "asyncio.Task[list[Classes]]":
        """Classify with all ten crops, and the logits of each."""
        deadline_s = time.monotonic() + FOREVER_S
        return asyncio.create_task(self.remote.classify(bytes([image]), self.model, None, deadline_s, crops=10))

    def close(self) -> None:
        for gate in self.gates.values():
            gate.set()
        self.remote.close()
        self.decoders.close(wait=False)
        for engine in self._engines:
            engine.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 the client has no event for a slot that is free again
            await asyncio.sleep(0)


async def class_of(classifying: Awaitable[Classes]) -> int:
    return int((await asyncio.wait_for(classifying, PATIENCE_S)).indices[0])


async def failure_of(classifying: Awaitable[object]) -> Code:
    with pytest.raises(ServiceError) as error:
        await asyncio.wait_for(classifying, PATIENCE_S)
    return error.value.code


async def hears_nothing_of_the_past(engine: PlayedEngine, bench: Bench) -> None:
    """Check that the engine gets nothing older than a new request; they arrive in the order of sending."""
    new = bench.classify(200)
    request = await engine.submitted()
    assert engine.pixel(request) == 200
    await engine.answer(request)
    assert await class_of(new) == 200


async def leave(classifying: "asyncio.Task[Any]") -> None:
    """Disconnect the client of this request."""
    classifying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await classifying


Play = Callable[..., None]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return tiny.write(tmp_path_factory.mktemp("repository"), crop=4)


def play_with(
    manifest: Manifest, scenario: Callable[[Bench], Coroutine[Any, Any, None]], slots: int = 2, threads: int = 2
) -> None:
    """Run a scenario in the server's kind of event loop; nothing may be under way at its end."""

    async def scene(folder: Path) -> None:
        bench = Bench(manifest, slots, threads, folder)
        try:
            await scenario(bench)
            assert bench.pending == 0
        finally:
            bench.close()

    with TemporaryDirectory() as folder:
        uvloop.run(scene(Path(folder)))


@pytest.fixture
def play(manifest: Manifest) -> Play:
    return lambda scenario, **options: play_with(manifest, scenario, **options)


def test_an_image_goes_to_the_engine_in_a_slot_and_its_classes_come_back(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        before_s = time.monotonic()
        classifying = bench.classify(7, seconds=100.0)
        request = await engine.submitted()
        assert request.slot in range(3, 5)  # this worker's own
        assert (request.model, request.top_k, request.quarantined) == (bench.model.id, 5, False)
        assert before_s <= request.arrived_s <= time.monotonic()
        assert before_s + 100.0 <= request.deadline_s <= time.monotonic() + 100.0
        assert bench.pending == 1
        await engine.answer(request)
        classes = await classifying
        assert (classes.indices.tolist(), classes.probabilities.tolist()) == ([7], [1.0])
        assert (classes.queue_s, classes.inference_s, classes.batch_size) == (0.25, 0.5, 3)
        assert min(classes.decode_wait_s, classes.decode_s) > 0

    play(scenario)


def test_full_refuses_at_once_and_decodes_nothing(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        accepted = [bench.classify(image) for image in (1, 2)]
        requests = [await engine.submitted() for _ in accepted]
        with pytest.raises(ServiceError) as error:
            bench.remote.check_admission()
        assert error.value.code is Code.QUEUE_FULL
        assert await failure_of(bench.classify(3)) is Code.QUEUE_FULL
        assert sorted(bench.decoded) == [1, 2]
        await engine.answer(*requests)
        assert [await class_of(classifying) for classifying in accepted] == [1, 2]
        bench.remote.check_admission()

    play(scenario)


def test_places_are_free_again_where_no_thread_can_be_started(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
            for _ in range(3):
                with pytest.raises(RuntimeError):
                    await bench.classify(1)
        classifying = bench.classify(2)
        await engine.answer(await engine.submitted())
        assert await class_of(classifying) == 2
        assert bench.decoded == [2]

    play(scenario)


def test_an_image_that_another_thread_begins_with_where_none_can_be_started_is_answered(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(bench: Bench) -> None:
        begun = threading.Event()

        class Gate(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                begun.set()
                return super().wait(timeout)

        def start(_: threading.Thread) -> None:
            bench.gates[1].set()
            assert begun.wait(PATIENCE_S)
            raise RuntimeError("can't start new thread")

        engine = bench.engine_up()
        first = bench.classify(1, gated=True)
        await until(lambda: bench.begun == [1])
        bench.gates[2] = Gate()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            second = bench.classify(2)
            await until(begun.is_set)
        bench.gates[2].set()
        await engine.answer(await engine.submitted(), await engine.submitted())
        assert [await class_of(classifying) for classifying in (first, second)] == [1, 2]
        assert bench.pending == 0

    play(scenario, threads=2)


def test_ten_crops_are_admitted_together_or_not_at_all(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        classifying = bench.classify(1)
        request = await engine.submitted()
        assert await failure_of(bench.classify_crops(2)) is Code.QUEUE_FULL
        await engine.answer(request)
        assert await class_of(classifying) == 1
        crops = bench.classify_crops(2)
        requests = [await engine.submitted() for _ in range(10)]
        assert len({request.slot for request in requests}) == 10
        assert bench.decoded == [1, 2]
        await engine.answer(*requests)
        assert [each.logits.argmax() for each in await crops] == [2] * 10

    play(scenario, slots=10)


def test_ten_crops_that_could_never_be_held_are_a_mistake_of_the_request(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        bench.engine_up()
        assert await failure_of(bench.classify_crops(1)) is Code.INVALID_PARAMETER

    play(scenario, slots=9)


def test_one_failed_crop_fails_the_request_and_frees_all_its_slots(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        crops = bench.classify_crops(1)
        first, *others = [await engine.submitted() for _ in range(10)]
        await engine.reply(Failure(first.id, Code.INFERENCE_FAILED, "it failed"))
        with pytest.raises(ServiceError, match="it failed"):
            await crops
        assert {(await engine.cancelled()).id for _ in others} == {other.id for other in others}
        await engine.reply(*(Dropped(other.id) for other in others))
        await until(lambda: bench.pending == 0)

    play(scenario, slots=10)


def test_an_average_ranks_by_the_mean_probability() -> None:
    def answer(*probabilities: float) -> Classes:
        logits = np.log(np.array(probabilities, np.float32)) + 100  # a constant does not change the softmax
        nothing = np.empty(0, np.float32)
        return Classes(nothing, nothing.astype(np.int32), logits, 2.0, 3.0, 4, 0.5, 1.0)

    mean = average([answer(0.6, 0.3, 0.1), answer(0.1, 0.5, 0.4)], 2, "softmax")
    assert mean.indices.tolist() == [1, 0]
    np.testing.assert_allclose(mean.probabilities, [0.4, 0.35], atol=1e-6)


def test_an_average_of_independent_probabilities_need_not_sum_to_one() -> None:
    def answer(*logits: float) -> Classes:
        nothing = np.empty(0, np.float32)
        return Classes(nothing, nothing.astype(np.int32), np.array(logits, np.float32), 2.0, 3.0, 4)

    mean = average([answer(0, 1000, -1000), answer(1000, 0, -1000)], 3, "sigmoid")
    assert mean.indices.tolist() == [0, 1, 2]
    np.testing.assert_allclose(mean.probabilities, [0.75, 0.75, 0])


def test_requests_wait_for_the_first_engine(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        early = bench.classify(1)
        await until(lambda: bench.decoded == [1])
        assert not bench.remote.connected
        engine = bench.engine_up()
        await engine.answer(await engine.submitted())
        assert await class_of(early) == 1

    play(scenario)


def test_what_is_no_image_never_reaches_the_engine(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        assert await failure_of(bench.classify(NO_IMAGE)) is Code.NOT_AN_IMAGE
        assert bench.pending == 0
        classifying = bench.classify(1)
        request = await engine.submitted()
        assert engine.pixel(request) == 1
        await engine.answer(request)
        await classifying

    play(scenario)


def test_the_engines_own_errors_reach_the_caller(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        classifying = bench.classify(1)
        await engine.reply(Failure((await engine.submitted()).id, Code.INFERENCE_FAILED, "no memory"))
        with pytest.raises(ServiceError, match="no memory") as error:
            await classifying
        assert error.value.code is Code.INFERENCE_FAILED

    play(scenario)


def test_who_leaves_before_decoding_frees_the_slot_and_is_never_decoded(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        first, second = bench.classify(1, gated=True), bench.classify(2)
        await until(lambda: bench.begun == [1] and bench.pending == 2)
        await leave(second)
        await until(lambda: bench.pending == 1)
        bench.gates[1].set()
        await engine.answer(await engine.submitted())
        assert await class_of(first) == 1
        assert bench.decoded == [1]

    play(scenario, threads=1)


def test_who_leaves_while_decoding_frees_the_slot_when_the_decoder_lets_go_of_it(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        leaver = bench.classify(1, gated=True)
        await until(lambda: bench.begun == [1])
        await leave(leaver)
        other = bench.classify(2)
        request = await engine.submitted()
        assert engine.pixel(request) == 2
        assert bench.pending == 2
        bench.gates[1].set()
        await until(lambda: bench.pending == 1)
        await engine.answer(request)
        assert await class_of(other) == 2

    play(scenario)


def test_who_leaves_while_queued_frees_the_slot_when_the_engine_lets_go_of_it(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        leaver, stayer = bench.classify(1), bench.classify(2)
        requests = {engine.pixel(request): request for request in [await engine.submitted() for _ in "12"]}
        await leave(leaver)
        assert (await engine.cancelled()).id == requests[1].id
        assert await failure_of(bench.classify(3)) is Code.QUEUE_FULL
        await engine.reply(Dropped(requests[1].id))
        await until(lambda: bench.pending == 1)
        newcomer = bench.classify(4)
        request = await engine.submitted()
        assert request.slot == requests[1].slot
        await engine.answer(request, requests[2])
        assert [await class_of(newcomer), await class_of(stayer)] == [4, 2]

    play(scenario)


def test_who_leaves_while_running_spares_its_batchmates(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        leaver, stayer = bench.classify(1), bench.classify(2)
        requests = [await engine.submitted() for _ in "12"]
        engine.start(*requests)
        await leave(leaver)
        await engine.cancelled()
        await engine.answer(*requests)
        assert await class_of(stayer) == 2
        assert bench.pending == 0

    play(scenario)


def test_a_deadline_that_passes_in_the_engine_is_an_error_and_gives_the_work_up(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        classifying = bench.classify(1, seconds=1.0)
        request = await engine.submitted()
        assert await failure_of(classifying) is Code.DEADLINE_EXCEEDED
        assert (await engine.cancelled()).id == request.id
        assert bench.pending == 1
        await engine.reply(Dropped(request.id))
        await until(lambda: bench.pending == 0)

    play(scenario)


def test_what_is_late_already_is_not_decoded(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        bench.engine_up()
        assert await failure_of(bench.classify(1, seconds=-1.0)) is Code.DEADLINE_EXCEEDED
        await until(lambda: bench.pending == 0)
        assert bench.decoded == []

    play(scenario)


def test_a_deadline_that_passes_while_decoding_is_an_error_and_the_engine_hears_nothing(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        assert await failure_of(bench.classify(1, seconds=0.02, gated=True)) is Code.DEADLINE_EXCEEDED
        bench.gates[1].set()
        await until(lambda: bench.pending == 0)
        await hears_nothing_of_the_past(engine, bench)

    play(scenario)


def test_a_crash_loses_nothing_and_what_it_may_have_died_of_runs_alone(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        first = bench.engine_up()
        waiting = [bench.classify(image) for image in (1, 2, 3)]
        requests = {first.pixel(request): request for request in [await first.submitted() for _ in waiting]}
        first.start(requests[1], requests[3])
        bench.engine_down()
        assert not bench.remote.connected
        late = bench.classify(4)  # admitted: the engine is coming back
        await until(lambda: bench.decoded.count(4) == 1)
        second = bench.engine_up()
        again = {second.pixel(request): request for request in [await second.submitted() for _ in "1234"]}
        assert {image: request.quarantined for image, request in again.items()} == {
            1: True,
            2: False,
            3: True,
            4: False,
        }
        for image in (1, 2, 3):
            assert again[image].deadline_s == requests[image].deadline_s
            assert again[image].arrived_s == requests[image].arrived_s
        await second.answer(*again.values())
        assert [await class_of(classifying) for classifying in (*waiting, late)] == [1, 2, 3, 4]
        assert sorted(bench.decoded) == [1, 2, 3, 4]  # nothing was decoded twice

    play(scenario, slots=4)


def test_a_job_in_two_crashed_batches_is_given_up_and_its_neighbours_are_answered(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        first = bench.engine_up()
        tasks = {image: bench.classify(image) for image in (1, 2)}
        first.start(*[await first.submitted() for _ in tasks])
        bench.engine_down()
        second = bench.engine_up()
        again = {second.pixel(request): request for request in [await second.submitted() for _ in tasks]}
        assert all(request.quarantined for request in again.values())
        second.start(again[1])
        bench.engine_down()
        assert await failure_of(tasks[1]) is Code.ENGINE_CRASHED
        third = bench.engine_up()
        request = await third.submitted()
        assert (third.pixel(request), request.quarantined) == (2, True)
        await third.answer(request)
        assert await class_of(tasks[2]) == 2

    play(scenario)


def test_what_only_waited_while_engines_crashed_is_innocent(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        classifying = bench.classify(1)
        for _ in range(5):
            assert not (await engine.submitted()).quarantined
            bench.engine_down()
            engine = bench.engine_up()
        await engine.answer(await engine.submitted())
        assert await class_of(classifying) == 1

    play(scenario)


def test_the_wait_for_an_engine_is_not_taken_for_its_pace(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        waited = bench.classify(1)
        await engine.submitted()
        bench.engine_down()
        down_s = time.monotonic()
        await until(lambda: time.monotonic() > down_s + 0.5)
        engine = bench.engine_up()
        await engine.answer(await engine.submitted())
        assert await class_of(waited) == 1
        under_way = bench.classify(2)
        request = await engine.submitted()
        bench.remote.check_admission(within_s=0.1)
        await engine.answer(request)
        assert await class_of(under_way) == 2

    play(scenario)


def test_a_slot_is_not_blamed_for_its_last_owner(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        for image in (1, 2):
            classifying = bench.classify(image)
            request = await engine.submitted()
            if image == 1:
                engine.start(request)
                await engine.answer(request)
                await classifying
        bench.engine_down()
        engine = bench.engine_up()
        request = await engine.submitted()
        assert not request.quarantined
        await engine.answer(request)
        assert await class_of(classifying) == 2

    play(scenario, slots=1)


def test_an_answer_that_was_sent_before_the_engine_died_is_not_lost(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        first = bench.engine_up()
        classifying = bench.classify(1)
        request = await first.submitted()
        first.start(request)
        await first.answer(request)  # it has arrived, but the event loop has not read it yet
        bench.engine_down()
        second = bench.engine_up()
        assert await class_of(classifying) == 1
        await hears_nothing_of_the_past(second, bench)

    play(scenario)


def test_what_a_dying_engine_had_does_not_wait_until_its_socket_closes(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(bench: Bench) -> None:
        theirs, dying = socket.socketpair()
        with monkeypatch.context() as patched, theirs, dying:
            patched.setattr(life, "watch", lambda _: [theirs.detach()])
            first = bench.engine_up()
            classifying = bench.classify(1)
            await first.submitted()
            dying.close()
            await until(lambda: not bench.remote.connected)
        second = bench.engine_up()
        await second.answer(await second.submitted())
        assert await class_of(classifying) == 1

    play(scenario)


def test_an_engine_that_does_not_come_back_at_once_answers_for_all_that_waits(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        waiting = [bench.classify(image) for image in (1, 2)]
        decoding = bench.classify(3, gated=True)
        for _ in waiting:
            await engine.submitted()
        bench.engine_down(recovering=False)
        assert [await failure_of(classifying) for classifying in waiting] == [Code.ENGINE_UNAVAILABLE] * 2
        assert await failure_of(bench.classify(4)) is Code.ENGINE_UNAVAILABLE
        bench.gates[3].set()
        assert await failure_of(decoding) is Code.ENGINE_UNAVAILABLE
        engine = bench.engine_up()
        classifying = bench.classify(5)
        await engine.answer(await engine.submitted())
        assert await class_of(classifying) == 5

    play(scenario, slots=3)


def test_what_waits_for_an_engine_that_then_is_given_up_is_told_so(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        classifying = bench.classify(1)
        await engine.submitted()
        bench.engine_down(recovering=True)
        bench.remote.engine_down(0, recovering=False)  # the new one crashed while loading
        assert await failure_of(classifying) is Code.ENGINE_UNAVAILABLE

    play(scenario)


def test_a_deadline_that_passes_while_the_engine_is_away_says_so(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        classifying = bench.classify(1, seconds=1.0)
        await engine.submitted()
        bench.engine_down()
        assert await failure_of(classifying) is Code.ENGINE_UNAVAILABLE
        assert bench.pending == 0
        await hears_nothing_of_the_past(bench.engine_up(), bench)

    play(scenario)


def test_who_leaves_while_the_engine_is_away_frees_the_slot_at_once(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        classifying = bench.classify(1)
        await engine.submitted()
        bench.engine_down()
        await leave(classifying)
        assert bench.pending == 0
        await hears_nothing_of_the_past(bench.engine_up(), bench)

    play(scenario)


def test_who_left_before_a_crash_is_not_run_again(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        classifying = bench.classify(1)
        engine.start(await engine.submitted())
        await leave(classifying)
        await engine.cancelled()
        bench.engine_down()
        assert bench.pending == 0
        await hears_nothing_of_the_past(bench.engine_up(), bench)

    play(scenario)


def test_the_same_pixels_are_asked_about_again_and_decoded_once(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        seen: list[list[int]] = []

        def follow(answers: list[Classes]) -> Question | None:
            seen.append([int(answer.logits.argmax()) for answer in answers])
            return Question(bench.model, None) if len(seen) < 3 else None

        deadline_s = time.monotonic() + FOREVER_S
        asked = bench.remote.classify(bytes([7]), bench.model, None, deadline_s, crops=10, follow=follow)
        classifying = asyncio.create_task(asked)
        slots = []
        for _ in range(3):
            requests = [await engine.submitted() for _ in range(10)]
            slots.append({request.slot for request in requests})
            assert bench.pending == 10
            await engine.answer(*requests)
        assert len(await asyncio.wait_for(classifying, PATIENCE_S)) == 10
        assert seen == [[7] * 10] * 3
        assert slots == [slots[0]] * 3
        assert bench.decoded == [7]

    play(scenario, slots=10)


def test_who_leaves_while_asked_again_spares_nothing_but_the_others(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        engine = bench.engine_up()
        asked = bench.remote.classify(
            bytes([7]),
            bench.model,
            5,
            time.monotonic() + FOREVER_S,
            follow=lambda _: Question(bench.model, 5),
        )
        leaving, staying = asyncio.create_task(asked), bench.classify(8)
        first, other = [await engine.submitted() for _ in range(2)]
        await engine.answer(first)
        again = await engine.submitted()
        assert (again.id, again.slot) == (first.id, first.slot)
        await leave(leaving)
        assert (await engine.cancelled()).id == again.id
        assert bench.pending == 2
        await engine.reply(Dropped(again.id))
        await engine.answer(other)
        assert await class_of(staying) == 8

    play(scenario)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["arrive"] * 5
            + ["arrive gated", "decode", "leave", "run", "answer", "answer", "fail", "crash", "give up", "up"]
        ),
        st.integers(0, 99),
    ),
    max_size=25,
)


class Chaos:
    """Plays any sequence of events, and knows which outcomes each request may have."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.engine: PlayedEngine | None = bench.engine_up()
        self.tasks: dict[int, asyncio.Task[Classes]] = {}
        self.left: set[int] = set()
        self.held: dict[int, Submit] = {}
        self.running: set[int] = set()
        self.crashes: dict[int, int] = {}

    async def act(self, action: str, number: int) -> None:
        if action.startswith("arrive") and len(self.tasks) < NO_IMAGE:
            image = len(self.tasks)
            self.tasks[image] = self.bench.classify(image, gated=action == "arrive gated")
            await asyncio.sleep(0)
        elif action == "decode":
            for gate in list(self.bench.gates.values())[: number % 3]:
                gate.set()
        elif action == "leave" and self.tasks:
            image = number % len(self.tasks)
            if not self.tasks[image].done():
                self.left.add(image)
                self.tasks[image].cancel()
        elif action == "up" and self.engine is None:
            self.engine = self.bench.engine_up()
        elif action in ("crash", "give up"):
            self.crash(recovering=action == "crash")
        if self.engine:
            await self.serve(self.engine, action, number)

    def crash(self, *, recovering: bool) -> None:
        if self.engine:
            self.bench.engine_down(recovering=recovering)
        else:
            self.bench.remote.engine_down(0, recovering=recovering)
        for request_id in self.running:
            self.crashes[request_id] = self.crashes.get(request_id, 0) + 1
        self.engine = None
        self.held.clear()
        self.running.clear()

    async def serve(self, engine: PlayedEngine, action: str, number: int) -> None:
        for request in await engine.arrived():
            if isinstance(request, Cancel):
                if request.id in self.held and request.id not in self.running:
                    del self.held[request.id]
                    await engine.reply(Dropped(request.id))
                continue
            assert request.id not in self.held
            assert request.slot not in [other.slot for other in self.held.values()]
            assert request.quarantined is (self.crashes.get(request.id, 0) > 0)
            assert self.crashes.get(request.id, 0) < 2
            self.held[request.id] = request
        some = [request for request in self.held.values() if (request.id + number) % 2]
        if action == "run":
            engine.start(*some)
            self.running |= {request.id for request in some}
        elif action in ("answer", "fail"):
            replies: list[Reply] = [engine.answer_to(request) for request in some]
            if action == "fail":
                replies = [Failure(request.id, Code.INFERENCE_FAILED, "a model's own") for request in some]
            for request in some:
                del self.held[request.id]
                self.running.discard(request.id)
            await engine.reply(*replies)
            # Wait until the client has read them, so that it is known what a later crash leaves unanswered.
            await until(lambda: not any(request.id in self.bench.remote._futures for request in some))

    async def end(self) -> None:
        """Let every request end, and check its outcome."""
        for gate in self.bench.gates.values():
            gate.set()
        await self.act("up", 0)
        async with asyncio.timeout(PATIENCE_S):
            while self.bench.pending:
                for parity in (0, 1):
                    await self.act("answer", parity)
        results = await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        for image, result in zip(self.tasks, results, strict=True):
            if isinstance(result, Classes):
                assert result.indices.tolist() == [image]
            elif isinstance(result, asyncio.CancelledError):
                assert image in self.left
            else:
                assert isinstance(result, ServiceError)
                assert result.code in (
                    Code.QUEUE_FULL,
                    Code.ENGINE_UNAVAILABLE,
                    Code.ENGINE_CRASHED,
                    Code.INFERENCE_FAILED,
                )


@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS, threads=st.integers(1, 3))
def test_whatever_happens_every_request_ends_once_and_no_slot_is_lost(
    manifest: Manifest, actions: list[tuple[str, int]], threads: int
) -> None:
    async def scenario(bench: Bench) -> None:
        chaos = Chaos(bench)
        for action, number in actions:
            await chaos.act(action, number)
        await chaos.end()
        assert chaos.engine
        again = [bench.classify(image) for image in range(bench.count)]
        requests = [await chaos.engine.submitted() for _ in again]
        assert len({request.slot for request in requests}) == bench.count
        assert await failure_of(bench.classify(200)) is Code.QUEUE_FULL
        await chaos.engine.answer(*requests)
        assert [await class_of(classifying) for classifying in again] == list(range(bench.count))

    play_with(manifest, scenario, slots=4, threads=threads)
