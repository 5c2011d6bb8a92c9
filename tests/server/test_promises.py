"""What the server promises, proven on real processes that are really killed."""

import itertools
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from server.control import HEARTBEAT_S
from tests import tiny
from tests.server.running import PATIENCE_S, GatedServer, Gates, RunningServer, red_image, top1, until


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    return repository


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model whose batches take time, so that some are under way when others come."""
    repository = tmp_path_factory.mktemp("quick")
    tiny.write(repository, work=100)
    return repository


def fork_server_of(server: RunningServer) -> psutil.Process:
    """The process that forks the other children."""
    parent = psutil.Process(server.pid("engine")).parent()
    assert parent
    return parent


@pytest.mark.parametrize("engines", [1, 2])
def test_a_killed_engine_loses_no_accepted_request(quick: Path, engines: int) -> None:
    reds = [n % 256 for n in range(400)]
    with RunningServer(quick, max_batch=4, engines=engines) as server, ThreadPoolExecutor(1) as aside:
        until(lambda: len(server.engines) == engines)
        names = itertools.cycle(server.engines)
        answers = aside.submit(server.classify_all, [red_image(red) for red in reds], 32)
        for batches in (5, 25, 50):
            until(lambda batches=batches: server.batches() >= batches)  # type: ignore[misc]
            server.kill_child(next(names))
        assert [top1(answer) for answer in answers.result()] == reds
        assert server.metric("serving_process_restarts_total") == 3


def test_what_could_only_be_answered_too_late_is_refused_before_it_costs_anything(repository: Path) -> None:
    with GatedServer(repository, max_batch=1) as server, ThreadPoolExecutor(1) as aside:
        with server.hold(1) as let_go:
            first, sent_s = aside.submit(server.classify, red_image(1)), time.monotonic()
            until(lambda: time.monotonic() > sent_s + 0.5)
            let_go()
            assert top1(first.result()) == 1  # now the server knows how long an image takes
        with server.hold(2, 3, 4, 5) as let_go:
            answers = aside.submit(server.classify_all, [red_image(red) for red in (2, 3, 4, 5)], 4)
            until(lambda: server.pending() == 4)
            refused = server.client.post("/classify", content=red_image(2), headers={"X-Request-Timeout": "0.01"})
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert refused.headers["Retry-After"] == "1"
            let_go()
            assert [top1(answer) for answer in answers.result()] == [2, 3, 4, 5]


def test_a_client_is_told_in_its_own_time_that_there_is_no_answer(repository: Path) -> None:
    with GatedServer(repository) as server, server.hold(2):
        late = server.client.post("/classify", content=red_image(2), headers={"X-Request-Timeout": "0.05"})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert server.client.post("/classify", headers={"X-Request-Timeout": "0"}).json()["code"] == "invalid_parameter"


def test_a_high_priority_overtakes_what_waits(repository: Path) -> None:
    with (
        GatedServer(repository, max_batch=1) as server,
        ThreadPoolExecutor(5) as aside,
        server.hold(1) as let_first_go,
        server.hold(2) as let_others_go,
    ):
        asked = [aside.submit(server.classify, red_image(1), priority="low")]
        until(lambda: server.batches() == 1)
        asked += [aside.submit(server.classify, red_image(2), priority="low") for _ in range(3)]
        until(lambda: server.pending() == 4)
        high = aside.submit(server.classify, red_image(7), priority="high")
        until(lambda: server.pending() == 5)
        let_first_go()
        assert top1(high.result()) == 7
        assert top1(asked[0].result()) == 1
        assert not any(low.done() for low in asked[1:])
        let_others_go()
        assert [top1(low.result()) for low in asked[1:]] == [2, 2, 2]


def test_a_job_in_two_crashed_batches_is_given_up_and_its_neighbours_are_answered(repository: Path) -> None:
    reds = [10, 20, 30, 40]
    with (
        GatedServer(repository, max_batch=4, max_wait_ms=10_000) as server,
        ThreadPoolExecutor(1) as aside,
        server.hold(*reds) as let_go,
    ):
        answers = aside.submit(server.classify_all, [red_image(red) for red in reds], 4)
        until(lambda: server.batches() == 1)  # all four together
        server.kill_child("engine")
        until(lambda: server.batches() == 2)  # the first of them alone
        server.kill_child("engine")
        let_go()
        failed, *answered = sorted(answers.result(), key=lambda answer: -answer.status_code)
        assert (failed.status_code, failed.json()["code"]) == (500, "engine_crashed")
        assert len({top1(answer) for answer in answered} & set(reds)) == 3
        assert {answer.json()["batch_size"] for answer in answered} == {1}


def test_a_killed_http_worker_is_replaced_and_the_port_stays_open(quick: Path) -> None:
    with RunningServer(quick) as server:
        old = server.pid("http-0")
        os.kill(old, signal.SIGKILL)
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as newcomer:
            until(lambda: newcomer.get("/readyz").status_code == 200)
            assert top1(newcomer.post("/classify", content=red_image(77))) == 77
        until(lambda: server.pid("http-0") != old)


def test_an_http_worker_that_dies_again_and_again_is_never_away_for_long(quick: Path) -> None:
    with RunningServer(quick) as server:
        for _ in range(5):
            server.kill_child("http-0")
        assert server.terminate() == 0
        server.wait_for_line("the server has ended")
        waits = [match[1] for line in server.lines if (match := re.search("http-0 ended .* restart in (.*) s", line))]
        assert waits == ["0", "0.5", "1", "1", "1"]


def test_a_killed_fork_server_is_not_noticed(quick: Path) -> None:
    with RunningServer(quick) as server:
        engine, fork_server = server.pid("engine"), fork_server_of(server)
        fork_server.kill()
        until(lambda: not fork_server.is_running() or fork_server.status() == psutil.STATUS_ZOMBIE)
        assert top1(server.classify(red_image(7))) == 7
        assert server.pid("engine") == engine
        server.kill_child("engine")
        server.kill_child("http-0")
        assert top1(server.classify(red_image(8))) == 8
        assert fork_server_of(server).pid != fork_server.pid
        assert server.terminate() == 0


def test_a_process_that_the_system_does_not_give_is_asked_for_again(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with RunningServer(quick) as server:
        (run_folder,) = tmp_path.iterdir()
        hidden = run_folder.rename(tmp_path / "hidden")
        fork_server_of(server).kill()
        start = len(server.lines)
        os.kill(server.pid("http-0"), signal.SIGKILL)
        server.wait_for_line("http-0 cannot be started: FileNotFoundError.*: restart in 1 s", start)
        hidden.rename(run_folder)
        assert top1(server.classify(red_image(9))) == 9


def test_sigterm_answers_what_was_accepted_then_ends_and_leaves_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with (
        GatedServer(repository, max_batch=1, drain_delay_ms=2000) as server,
        ThreadPoolExecutor(1) as aside,
        server.hold(1, 2, 3) as let_go,
    ):
        children = server.tree()
        maps = Path(f"/proc/{server.pid('engine')}/maps").read_text().splitlines()
        (slots,) = (mapped for mapped in maps if "/dev/shm/" in mapped)
        assert slots.endswith("(deleted)")  # so it disappears with the processes, however they end
        assert list(tmp_path.iterdir())
        answers = aside.submit(server.classify_all, [red_image(red) for red in (1, 2, 3)], 3)
        until(lambda: server.pending() == 3)
        server.process.terminate()
        until(lambda: server.client.get("/readyz").status_code == 503)
        assert server.client.get("/livez").headers["connection"] == "close"
        let_go()
        assert [top1(answer) for answer in answers.result()] == [1, 2, 3]
        assert {answer.headers["connection"] for answer in answers.result()} == {"close"}
        assert server.process.wait(PATIENCE_S) == 0
        with pytest.raises(httpx.ConnectError):
            server.client.get("/livez")
        assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]
    assert not list(tmp_path.iterdir())


def test_sigterm_while_starting_is_a_clean_end(repository: Path, tmp_path: Path) -> None:
    with starting(repository, tmp_path) as (server, let_go):
        child_of(server, "http-0")
        server.process.terminate()
        let_go()
        assert server.process.wait(PATIENCE_S) == 0
        server.wait_for_line("the server has ended")
        assert not any("Traceback" in line for line in server.lines)


class StartingServer(GatedServer):
    waits = False


@contextmanager
def starting(repository: Path, folder: Path) -> Generator[tuple[GatedServer, Callable[[], None]]]:
    """A server whose engine does not end its warm-up before the yielded function is called."""
    gates = Gates(folder)
    with gates.hold(0) as let_go, StartingServer(repository, gates=gates) as server:
        yield server, let_go
        server.process.terminate()
        server.wait_for_line("the server has ended")
        assert not any("Traceback" in line for line in server.lines)


def child_of(server: RunningServer, name: str) -> psutil.Process:
    """The first process of that name, even before the server is ready."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = [process for process in server.tree() if process.name() == name]
        return bool(found)

    until(look)
    return found[0]


def test_a_worker_that_dies_before_the_server_is_ready_is_replaced(repository: Path, tmp_path: Path) -> None:
    with starting(repository, tmp_path) as (server, let_go):
        server.wait_for_line("http-0 is ready")
        child_of(server, "http-0").kill()
        server.wait_for_line("http-0 ended")
        let_go()
        server.wait_until_ready()
        assert top1(server.classify(red_image(5))) == 5


def test_who_is_told_that_the_server_is_ready_is_answered(repository: Path, tmp_path: Path) -> None:
    with starting(repository, tmp_path) as (server, let_go), ThreadPoolExecutor(1) as aside:
        server.wait_for_line("http-0 is ready")
        worker = child_of(server, "http-0")
        worker.suspend()
        try:
            let_go()
            server.wait_for_line("engine is ready")
            ready = aside.submit(server.wait_until_ready)
            told = wait([ready], 0.5).done
        finally:
            worker.resume()
        ready.result()
        assert top1(server.classify(red_image(7))) == 7
    assert not told


def test_a_request_that_comes_before_the_engine_waits_for_it(repository: Path, tmp_path: Path) -> None:
    with starting(repository, tmp_path) as (server, let_go), ThreadPoolExecutor(1) as aside:
        server.wait_for_line("http-0 is ready")
        (port,) = (one.laddr.port for one in child_of(server, "http-0").net_connections("tcp"))
        url = f"http://127.0.0.1:{port}"
        answer = aside.submit(httpx.post, f"{url}/classify", content=red_image(7), timeout=PATIENCE_S)
        until(lambda: "serving_pending_requests 1.0" in httpx.get(f"{url}/metrics").text)
        assert httpx.get(f"{url}/readyz").status_code == 503
        let_go()
        assert top1(answer.result()) == 7


@pytest.mark.parametrize("engines", [1, 2])
def test_an_engine_killed_while_draining_still_loses_nothing(repository: Path, engines: int) -> None:
    with (
        GatedServer(repository, max_batch=1, engines=engines) as server,
        ThreadPoolExecutor(1) as aside,
        server.hold(1, 2, 3) as let_go,
    ):
        answers = aside.submit(server.classify_all, [red_image(red) for red in (1, 2, 3)], 3)
        until(lambda: server.pending() == 3)
        server.process.terminate()
        server.wait_for_line("draining")
        for name in server.engines:
            server.kill_child(name)
        let_go()
        assert [top1(answer) for answer in answers.result()] == [1, 2, 3]
        assert server.process.wait(PATIENCE_S) == 0


def test_a_second_signal_stops_at_once(repository: Path) -> None:
    with RunningServer(repository, drain_delay_ms=600_000) as server:
        server.process.send_signal(signal.SIGINT)
        server.wait_for_line("draining")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE_S) == 0


def test_children_do_not_outlive_a_killed_supervisor(quick: Path) -> None:
    with RunningServer(quick) as server:
        children = server.tree()[1:]
        server.process.send_signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        until(lambda: time.monotonic() > stopped_s + 2 * HEARTBEAT_S)  # their pipes hold what it never reads
        server.process.kill()
        _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
        assert not alive


def test_a_batch_under_way_does_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    tiny.write(tmp_path, "endless", work=10**9)
    with RunningServer(tmp_path, models="tiny", max_batch=1) as server:
        children = server.tree()[1:]
        loading = urlsplit(server.url)
        with socket.create_connection((loading.hostname, loading.port)) as connection:
            connection.sendall(
                b"POST /v2/repository/models/endless/load HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
            )
            engine = psutil.Process(server.pid("engine"))
            busy_s = engine.cpu_times().user + 0.5
            until(lambda: engine.cpu_times().user > busy_s)  # its first inference, which would take months
            server.process.kill()
            _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
            assert not alive


def test_waiting_for_the_last_answer_costs_the_supervisor_nothing(repository: Path) -> None:
    with (
        GatedServer(repository, max_batch=1, http_workers=2) as server,
        ThreadPoolExecutor(1) as aside,
        server.hold(1) as let_go,
    ):
        answer = aside.submit(server.classify, red_image(1))
        until(lambda: server.batches() == 1)
        supervisor = psutil.Process(server.process.pid)
        server.process.terminate()
        server.wait_for_line(r"http-\d.*Finished server process")
        before, since_s = supervisor.cpu_times(), time.monotonic()
        until(lambda: time.monotonic() > since_s + 2)
        let_go()
        assert top1(answer.result()) == 1
        after = supervisor.cpu_times()
        assert after.user + after.system - before.user - before.system < (time.monotonic() - since_s) / 10


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(repository: Path) -> None:
    with (
        GatedServer(repository, max_batch=1, queue_size=2) as server,
        ThreadPoolExecutor(1) as aside,
        server.hold(1, 2) as let_go,
    ):
        accepted = aside.submit(server.classify_all, [red_image(1), red_image(2)], 2)
        until(lambda: server.pending() == 2)
        refused = server.classify(red_image(3))
        assert not accepted.done()
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert int(refused.headers["Retry-After"]) >= 1
        let_go()
        assert [top1(answer) for answer in accepted.result()] == [1, 2]
        assert top1(server.classify(red_image(3))) == 3


def test_a_client_that_leaves_frees_its_place_and_its_job_never_runs(repository: Path) -> None:
    with (
        GatedServer(repository, max_batch=1, queue_size=2) as server,
        ThreadPoolExecutor(2) as aside,
        server.hold(1) as let_go,
    ):
        first = aside.submit(server.classify, red_image(1))
        until(lambda: server.batches() == 1)
        leaver = server.post_and_keep_open(red_image(2))
        until(lambda: server.pending() == 2)
        leaver.close()
        until(lambda: server.pending() == 1)
        next_one = aside.submit(server.classify, red_image(3))
        until(lambda: server.pending() == 2)
        let_go()
        assert top1(next_one.result()) == 3
        assert top1(first.result()) == 1
        assert server.batches() == 2
        assert server.metric("serving_requests_total", code="client_closed") == 1


def test_an_expired_job_never_runs(repository: Path) -> None:
    reds = (1, 2, 3)
    with GatedServer(repository, max_batch=1, timeout_ms=1500) as server, server.hold(*reds) as let_go:
        answers = server.classify_all([red_image(red) for red in reds], 3)
        assert [(a.status_code, a.json()["code"]) for a in answers] == [(504, "deadline_exceeded")] * 3
        let_go()
        until(lambda: server.pending() == 0)  # the first one's batch has ended; the others were never started
        assert server.batches() == 1


def test_without_an_engine_requests_are_refused_as_unavailable(tmp_path: Path) -> None:
    tiny.write(tmp_path / "repository")
    with RunningServer(tmp_path / "repository", timeout_ms=1500) as server:
        os.kill(server.pid("engine"), signal.SIGSTOP)  # it can neither answer nor be replaced yet
        answer = server.classify(red_image(1))
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        (tmp_path / "repository" / "tiny").rename(tmp_path / "hidden")
        os.kill(server.pid("engine"), signal.SIGKILL)
        server.wait_for_line("is refused")
        until(lambda: "not served" in server.client.get("/readyz").text)
        assert server.classify(red_image(1)).json()["code"] == "model_unavailable"
        (tmp_path / "hidden").rename(tmp_path / "repository" / "tiny")
        until(lambda: server.classify(red_image(1)).status_code == 200)


def test_a_stopped_http_worker_is_replaced(quick: Path) -> None:
    with RunningServer(quick, stall_timeout_ms=5000) as server:
        start, old = len(server.lines), server.pid("http-0")
        os.kill(old, signal.SIGSTOP)
        server.wait_for_line("http-0 has shown no progress", start)
        until(lambda: server.pid("http-0") != old)
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as newcomer:
            assert top1(newcomer.post("/classify", content=red_image(5))) == 5
        assert sum("is killed" in line for line in server.lines) == 1
        assert server.terminate() == 0


def test_an_engine_that_makes_no_progress_is_replaced(quick: Path) -> None:
    with RunningServer(quick, stall_timeout_ms=5000) as server, ThreadPoolExecutor(1) as aside:
        start = len(server.lines)
        os.kill(server.pid("engine"), signal.SIGSTOP)
        answer = aside.submit(server.classify, red_image(9))
        server.wait_for_line("no progress", start)
        assert top1(answer.result()) == 9
        assert sum("is killed" in line for line in server.lines) == 1
        assert server.terminate() == 0
