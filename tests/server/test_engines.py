"""Two engine processes behind the same slots: if one crashes, the other answers its requests."""

import os
import signal
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests import tiny
from tests.server.running import GatedServer, RunningServer, red_image, top1, until

ENGINES = ("engine-0", "engine-1")
WARM_UP = 0
"""The class of warm-up images: while a test holds it, no engine becomes ready."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def server(repository: Path) -> Generator[GatedServer]:
    """Runs one image a batch; both engines have `everywhere`, only the second has `second`."""
    tiny.write(repository, "everywhere")
    tiny.write(repository, "second")
    (repository / "second" / "serving.json").write_text('{"devices": [1]}')
    with GatedServer(repository, engines=2, max_batch=1, default_model="everywhere", reload_ms=100) as running:
        yield running


def kill(server: RunningServer, engine: str) -> None:
    """Kill an engine, and wait until the server has noticed."""
    os.kill(server.pid(engine), signal.SIGKILL)
    until(lambda: engine in server.client.get("/readyz").text)


def are_back(server: RunningServer) -> None:
    until(lambda: server.client.get("/readyz").text == "ok")


def images_of(server: RunningServer, engine: str) -> float:
    return server.metric("serving_engine_images_total", engine=engine)


def test_each_engine_keeps_to_its_cpus_and_both_work(server: GatedServer) -> None:
    processes = [psutil.Process(server.pid(name)) for name in ENGINES]
    shares = [set(process.cpu_affinity()) for process in processes]
    if len(os.sched_getaffinity(0)) > 1:
        assert shares[0].isdisjoint(shares[1])
    assert shares[0] | shares[1] == os.sched_getaffinity(0)
    before = [images_of(server, name) for name in ENGINES]
    reds = [red % 255 + 1 for red in range(100)]
    with ThreadPoolExecutor(1) as aside:
        with server.hold(1):  # the first occupies one engine, and the others go to the other
            answers = aside.submit(server.classify_all, [red_image(red) for red in reds], 8)
            until(lambda: server.pending() > 1)
        assert [top1(answer) for answer in answers.result()] == reds
    until(lambda: all(images_of(server, name) > was for name, was in zip(ENGINES, before, strict=True)))


@pytest.mark.parametrize("dying", ENGINES)
def test_what_a_killed_engine_had_is_answered_by_the_other_while_it_is_away(server: GatedServer, dying: str) -> None:
    reds = [10] * 8
    started = server.batches()
    with ThreadPoolExecutor(1) as aside, server.hold(WARM_UP), server.hold(10) as let_go:
        answers = aside.submit(server.classify_all, [red_image(red) for red in reds], 8)
        until(lambda: server.batches() == started + 2 and server.pending() == 8)  # each runs one, and has three more
        kill(server, dying)
        let_go()
        assert [top1(answer) for answer in answers.result()] == reds
        assert top1(server.classify(red_image(20))) == 20
        ready = server.client.get("/readyz")
        assert (ready.status_code, ready.text.startswith(f"ok; not there: {dying} (")) == (200, True)
    are_back(server)


def test_an_image_that_two_engines_die_of_is_given_up(server: GatedServer) -> None:
    started = server.batches()
    with ThreadPoolExecutor(1) as aside, server.hold(WARM_UP), server.hold(11):
        answer = aside.submit(server.classify, red_image(11))
        until(lambda: server.batches() == started + 1)
        first = next(name for name in ENGINES if is_held(server, name, 11))
        kill(server, first)
        until(lambda: server.batches() == started + 2)
        other = next(name for name in ENGINES if name != first)
        os.kill(server.pid(other), signal.SIGKILL)
        failed = answer.result()
        assert (failed.status_code, failed.json()["code"]) == (500, "engine_crashed")
        assert server.client.get("/readyz").text == "the inference engine is starting or down"
    are_back(server)
    assert top1(server.classify(red_image(12))) == 12


def is_held(server: RunningServer, engine: str, red: int) -> bool:
    """Whether this engine is running an image of that class."""
    return any(Path(file.path).name == str(red) for file in psutil.Process(server.pid(engine)).open_files())


def test_what_only_one_engine_has_waits_for_that_one_and_the_rest_does_not(server: GatedServer) -> None:
    with ThreadPoolExecutor(1) as aside:
        with server.hold(WARM_UP):
            kill(server, "engine-1")
            late = aside.submit(server.classify, red_image(7), model="second")
            until(lambda: server.pending() == 1)
            assert top1(server.classify(red_image(6))) == 6
            assert server.client.get("/v2/models/second/ready").status_code != 200
            assert server.client.get("/v2/models/everywhere/ready").status_code == 200
            assert not late.done()
        assert top1(late.result()) == 7
    are_back(server)


def test_a_model_is_loaded_and_unloaded_on_all_engines_as_one(server: GatedServer, repository: Path) -> None:
    tiny.write(repository, "new")
    assert server.client.post("/v2/repository/models/new/load").status_code == 200
    for dying in ENGINES:
        with server.hold(WARM_UP):
            kill(server, dying)
            assert top1(server.classify(red_image(8), model="new")) == 8
        are_back(server)
    assert server.client.post("/v2/repository/models/new/unload").status_code == 200
    assert server.classify(red_image(8), model="new").status_code == 404
