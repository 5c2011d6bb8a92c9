"""What the server promises, proven on real processes that are really killed."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from server.control import HEARTBEAT_S
from tests import tiny
from tests.server.running import PATIENCE_S, ROOT, RunningServer, red_image, until

TENTH_OF_A_SECOND = 400
"""`work` of a tiny model, about: it depends on the machine, and no test on the exact time."""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model whose batches take some tenths of a second."""
    repository = tmp_path_factory.mktemp("slow")
    tiny.write(repository, work=5 * TENTH_OF_A_SECOND)
    return repository


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model that costs some hundredths of a second."""
    repository = tmp_path_factory.mktemp("quick")
    tiny.write(repository, work=TENTH_OF_A_SECOND // 4)
    return repository


@pytest.fixture(scope="module")
def slow_to_warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model that takes the engine longer to warm up than the HTTP worker to start."""
    repository = tmp_path_factory.mktemp("slow-to-warm")
    tiny.write(repository, work=10 * TENTH_OF_A_SECOND)
    return repository


def top1(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    class_id: int = response.json()["predictions"][0]["class_id"]
    return class_id


def fork_server_of(server: RunningServer) -> psutil.Process:
    """The process whose forks the others are."""
    parent = psutil.Process(server.pid("engine")).parent()
    assert parent
    return parent


def running(server: RunningServer) -> float:
    """Batches that have started so far."""
    return server.metric("serving_batch_size_count")


def pending(server: RunningServer) -> float:
    return server.metric("serving_pending_requests")


def test_a_killed_engine_loses_no_accepted_request(quick: Path) -> None:
    reds = [n % 256 for n in range(400)]
    with RunningServer(quick, max_batch=4) as server, ThreadPoolExecutor(1) as aside:
        answers = aside.submit(server.classify_all, [red_image(red) for red in reds], 32)
        for batches in (5, 25, 50):
            until(lambda batches=batches: running(server) >= batches)  # type: ignore[misc]
            server.kill_child("engine")
        assert [top1(answer) for answer in answers.result()] == reds
        assert server.metric("serving_process_restarts_total", process="engine") == 3


def test_what_could_only_be_answered_too_late_is_refused_before_it_costs_anything(slow: Path) -> None:
    with RunningServer(slow, max_batch=1) as server, ThreadPoolExecutor(1) as aside:
        assert top1(server.classify(red_image(1))) == 1  # now it knows how long one takes
        answers = aside.submit(server.classify_all, [red_image(red) for red in range(4)], 4)
        until(lambda: pending(server) == 4)
        refused = server.client.post("/classify", content=red_image(2), headers={"X-Request-Timeout": "0.01"})
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["Retry-After"] == "1"
        assert [top1(answer) for answer in answers.result()] == [0, 1, 2, 3]


def test_a_client_is_told_in_its_own_time_that_there_is_no_answer(slow: Path) -> None:
    with RunningServer(slow) as server:
        late = server.client.post("/classify", content=red_image(2), headers={"X-Request-Timeout": "0.05"})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert server.client.post("/classify", headers={"X-Request-Timeout": "0"}).json()["code"] == "invalid_parameter"


def test_a_high_priority_overtakes_what_waits(slow: Path) -> None:
    order: list[str] = []
    with RunningServer(slow, max_batch=1) as server, ThreadPoolExecutor(5) as aside:

        def ask(priority: str) -> None:
            top1(server.classify(red_image(7), priority=priority))
            order.append(priority)

        asked = [aside.submit(ask, "low") for _ in range(4)]
        until(lambda: pending(server) == 4)
        asked.append(aside.submit(ask, "high"))
        for one in asked:
            one.result()
    assert order.index("high") < 3


def test_a_job_in_two_crashed_batches_is_given_up_and_its_neighbours_are_answered(slow: Path) -> None:
    reds = [10, 20, 30, 40]
    with RunningServer(slow, max_batch=4, max_wait_ms=2000) as server, ThreadPoolExecutor(1) as aside:
        answers = aside.submit(server.classify_all, [red_image(red) for red in reds], 4)
        until(lambda: running(server) == 1)  # all four together
        server.kill_child("engine")
        until(lambda: running(server) == 2)  # the first of them alone
        server.kill_child("engine")
        failed, *answered = sorted(answers.result(), key=lambda answer: -answer.status_code)
        assert (failed.status_code, failed.json()["code"]) == (500, "engine_crashed")
        assert len({top1(answer) for answer in answered} & set(reds)) == 3
        assert {answer.json()["batch_size"] for answer in answered} == {1}


def test_a_killed_http_worker_is_replaced_and_the_port_stays_open(quick: Path) -> None:
    with RunningServer(quick) as server:
        start = len(server.lines)
        os.kill(server.pid("http-0"), signal.SIGKILL)
        with httpx.Client(base_url=server.url, timeout=60) as newcomer:
            while newcomer.get("/readyz").status_code != 200:
                pass
            assert top1(newcomer.post("/classify", content=red_image(77))) == 77
        server.wait_for_line("http-0 is ready", start)


def test_an_http_worker_that_dies_again_and_again_is_never_away_for_long(quick: Path) -> None:
    with RunningServer(quick) as server:
        for _ in range(5):
            server.kill_child("http-0")
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
        server.wait_for_line("http-0 is ready", start)
        assert top1(server.classify(red_image(9))) == 9


def test_sigterm_answers_what_was_accepted_then_ends_and_leaves_nothing(
    slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with RunningServer(slow, max_batch=1, drain_delay_ms=300) as server, ThreadPoolExecutor(1) as aside:
        children = server.tree()
        maps = Path(f"/proc/{server.pid('engine')}/maps").read_text().splitlines()
        (slots,) = (mapped for mapped in maps if "/dev/shm/" in mapped)
        assert slots.endswith("(deleted)")  # so whatever ends the processes, it ends with them
        assert list(tmp_path.iterdir())
        answers = aside.submit(server.classify_all, [red_image(red) for red in (1, 2, 3)], 3)
        until(lambda: pending(server) == 3)
        server.process.terminate()
        until(lambda: server.client.get("/readyz").status_code == 503)
        assert server.client.get("/livez").status_code == 200
        assert [top1(answer) for answer in answers.result()] == [1, 2, 3]
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            server.client.get("/livez")
        assert not psutil.wait_procs(children, timeout=30)[1]
    assert not list(tmp_path.iterdir())


def test_sigterm_while_starting_is_a_clean_end(quick: Path) -> None:
    command = [sys.executable, "-m", "server", "--port", "0", "--repository", str(quick)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if "is warm" in line or "is ready" in line:
                break
        process.terminate()
        rest = process.stderr.read()
        assert process.wait(30) == 0
        assert "Traceback" not in rest


@contextmanager
def starting(repository: Path) -> Generator[tuple[Callable[[bytes], str], IO[bytes]]]:
    """A server with one HTTP worker that is left to start: what waits for a line of its log, and the log."""
    command = [sys.executable, "-m", "server", "--port", "0", "--http-workers", "1", "--repository", str(repository)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, bufsize=0) as process:
        log = process.stderr
        assert log
        yield lambda pattern: next(found[1] for line in log if (found := re.search(pattern, line))).decode(), log
        process.terminate()
        assert b"Traceback" not in log.read()


def test_a_worker_that_dies_before_the_server_is_ready_is_replaced(slow_to_warm: Path) -> None:
    with starting(slow_to_warm) as (next_match, _):
        os.kill(int(next_match(rb"http-0 is ready, process (\d+)")), signal.SIGKILL)
        url = next_match(rb"ready on (\S+)")
        assert httpx.post(f"{url}/classify", content=red_image(5), timeout=30).status_code == 200


def test_who_is_told_that_the_server_is_ready_is_answered(slow_to_warm: Path) -> None:
    with starting(slow_to_warm) as (next_match, log):
        worker = int(next_match(rb"http-0 is ready, process (\d+)"))
        os.kill(worker, signal.SIGSTOP)
        try:
            next_match(rb"(engine is ready)")
            told = select.select([log], [], [], 0.5)[0]
        finally:
            os.kill(worker, signal.SIGCONT)
        url = next_match(rb"ready on (\S+)")
        assert httpx.post(f"{url}/classify", content=red_image(7), timeout=PATIENCE_S).status_code == 200
    assert not told


def test_a_request_that_comes_before_the_engine_waits_for_it(slow_to_warm: Path) -> None:
    with starting(slow_to_warm) as (next_match, _), ThreadPoolExecutor(1) as aside:
        worker = psutil.Process(int(next_match(rb"http-0 is ready, process (\d+)")))
        (port,) = (one.laddr.port for one in worker.net_connections("tcp"))
        url = f"http://127.0.0.1:{port}"
        answer = aside.submit(httpx.post, f"{url}/classify", content=red_image(7), timeout=PATIENCE_S)
        until(lambda: "serving_pending_requests 1.0" in httpx.get(f"{url}/metrics").text)
        assert httpx.get(f"{url}/readyz").status_code == 503
        assert top1(answer.result()) == 7


def test_an_engine_killed_while_draining_still_loses_nothing(slow: Path) -> None:
    with RunningServer(slow, max_batch=1) as server, ThreadPoolExecutor(1) as aside:
        answers = aside.submit(server.classify_all, [red_image(red) for red in (1, 2, 3)], 3)
        until(lambda: pending(server) == 3)
        server.process.terminate()
        server.wait_for_line("draining")
        server.kill_child("engine")
        assert [top1(answer) for answer in answers.result()] == [1, 2, 3]
        assert server.process.wait(30) == 0


def test_a_second_signal_stops_at_once(slow: Path) -> None:
    with RunningServer(slow, max_batch=1, drain_delay_ms=600_000) as server:
        server.process.send_signal(signal.SIGINT)
        server.wait_for_line("draining")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0


def test_children_do_not_outlive_a_killed_supervisor(quick: Path) -> None:
    with RunningServer(quick) as server:
        children = server.tree()[1:]
        server.process.send_signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        until(lambda: time.monotonic() > stopped_s + 2 * HEARTBEAT_S)  # their pipes hold what it never reads
        server.process.kill()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive


def test_a_batch_under_way_does_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    tiny.write(tmp_path, work=1)
    tiny.write(tmp_path, "endless", work=10_000 * TENTH_OF_A_SECOND)
    with RunningServer(tmp_path, models="tiny", max_batch=1) as server:
        children = server.tree()[1:]
        loading = urlsplit(server.url)
        with socket.create_connection((loading.hostname, loading.port)) as connection:
            connection.sendall(
                b"POST /v2/repository/models/endless/load HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
            )
            engine = psutil.Process(server.pid("engine"))
            busy_s = engine.cpu_times().user + 0.5
            until(lambda: engine.cpu_times().user > busy_s)  # its first inference, which would take half an hour
            server.process.kill()
            _, alive = psutil.wait_procs(children, timeout=30)
            assert not alive


def test_waiting_for_the_last_answer_costs_the_supervisor_nothing(tmp_path: Path) -> None:
    tiny.write(tmp_path, work=30 * TENTH_OF_A_SECOND)
    with RunningServer(tmp_path, max_batch=1, http_workers=2) as server, ThreadPoolExecutor(1) as aside:
        answer = aside.submit(server.classify, red_image(1))
        until(lambda: running(server) == 1)
        supervisor = psutil.Process(server.process.pid)
        server.process.terminate()
        server.wait_for_line(r"http-\d.*Finished server process")
        before, since_s = supervisor.cpu_times(), time.monotonic()
        assert top1(answer.result()) == 1
        after = supervisor.cpu_times()
        assert after.user + after.system - before.user - before.system < (time.monotonic() - since_s) / 10


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(slow: Path) -> None:
    with RunningServer(slow, max_batch=1, queue_size=2) as server, ThreadPoolExecutor(1) as aside:
        accepted = aside.submit(server.classify_all, [red_image(1), red_image(2)], 2)
        until(lambda: pending(server) == 2)
        refused = server.classify(red_image(3))
        assert not accepted.done()
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert int(refused.headers["Retry-After"]) >= 1
        assert [top1(answer) for answer in accepted.result()] == [1, 2]
        assert top1(server.classify(red_image(3))) == 3


def test_a_client_that_leaves_frees_its_place_and_its_job_never_runs(slow: Path) -> None:
    with RunningServer(slow, max_batch=1, queue_size=2) as server, ThreadPoolExecutor(1) as aside:
        first = aside.submit(server.classify, red_image(1))
        until(lambda: running(server) == 1)
        leaver = post_and_keep_open(server, red_image(2))
        until(lambda: pending(server) == 2)
        leaver.close()
        until(lambda: pending(server) == 1)
        assert not first.done()
        assert top1(server.classify(red_image(3))) == 3
        assert top1(first.result()) == 1
        assert running(server) == 2
        assert server.metric("serving_requests_total", code="client_closed") == 1


def test_an_expired_job_never_runs(tmp_path: Path) -> None:
    tiny.write(tmp_path, work=50 * TENTH_OF_A_SECOND)
    with RunningServer(tmp_path, max_batch=1, timeout_ms=200) as server:
        answers = server.classify_all([red_image(1), red_image(2), red_image(3)], 3)
        assert [(a.status_code, a.json()["code"]) for a in answers] == [(504, "deadline_exceeded")] * 3
        until(lambda: pending(server) == 0)  # the first one's batch has ended; the others were never started
        assert running(server) == 1


def test_without_an_engine_requests_are_refused_as_unavailable(slow: Path) -> None:
    with RunningServer(slow, timeout_ms=1500) as server:
        os.kill(server.pid("engine"), signal.SIGSTOP)  # it can neither answer nor be replaced yet
        answer = server.classify(red_image(1))
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        (server_folder,) = {Path(model) for model in slow.iterdir()}
        hidden = server_folder.rename(slow / ".hidden")
        try:
            os.kill(server.pid("engine"), signal.SIGKILL)
            server.wait_for_line("is refused")
            until(lambda: "not served" in server.client.get("/readyz").text)
        finally:
            hidden.rename(server_folder)
        assert server.classify(red_image(1)).json()["code"] == "unknown_model"


def test_a_stopped_http_worker_is_replaced(quick: Path) -> None:
    with RunningServer(quick, stall_timeout_ms=3000) as server:
        start = len(server.lines)
        os.kill(server.pid("http-0"), signal.SIGSTOP)
        server.wait_for_line("http-0 has shown no progress", start)
        server.wait_for_line("http-0 is ready", start)
        with httpx.Client(base_url=server.url, timeout=60) as newcomer:
            assert top1(newcomer.post("/classify", content=red_image(5))) == 5
        assert sum("is killed" in line for line in server.lines) == 1
        assert server.terminate() == 0


def test_an_engine_that_makes_no_progress_is_replaced(quick: Path) -> None:
    with RunningServer(quick, stall_timeout_ms=3000) as server, ThreadPoolExecutor(1) as aside:
        start = len(server.lines)
        os.kill(server.pid("engine"), signal.SIGSTOP)
        answer = aside.submit(server.classify, red_image(9))
        server.wait_for_line("no progress", start)
        assert top1(answer.result()) == 9
        assert sum("is killed" in line for line in server.lines) == 1
        assert server.terminate() == 0


def post_and_keep_open(server: RunningServer, image: bytes) -> socket.socket:
    """Send a whole request and read nothing."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port))
    head = f"POST /classify HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(image)}\r\n\r\n"
    connection.sendall(head.encode() + image)
    return connection
