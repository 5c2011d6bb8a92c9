"""The tools of the GPU measurements: a server with identified processes, and senders that share a window."""

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from docs.measurements.gpu.load import Senders, prepared
from docs.measurements.gpu.safe import red
from docs.measurements.gpu.serving import Server, serving, watched
from tests import tiny
from tests.loadtest.serving import answer, fake_server


@pytest.fixture
def server(tmp_path: Path) -> Generator[Server]:
    tiny.write(tmp_path)
    with serving(tmp_path, {"http_workers": 2}) as running:
        yield running


def test_processes_are_told_apart_and_a_killed_engine_is_seen_in_readyz(server: Server) -> None:
    assert sorted(server.pids().values()) == ["engine", "http", "http", "supervisor"]
    assert set(server.cpu_s()) == {"engine", "http", "supervisor"}
    first, start = server.engine(), len(server.lines)
    with watched(server.url) as readiness:
        os.kill(first, signal.SIGKILL)
        server.wait_for(r"(engine) is ready", start)
        (photo,) = prepared(f"{server.url}/classify", [red(7)])
    assert photo.top1 == 7
    assert server.engine() != first
    assert readiness.seen[-2:] == [503, 200]


def test_a_server_that_does_not_start_is_an_error_with_its_log_at_once(tmp_path: Path) -> None:
    never = serving(tmp_path, {"http_workers": 1}, patience_s=10_000)
    with pytest.raises(RuntimeError, match="never said 'ready on"), never:
        pass


def test_senders_share_the_connections_and_count_what_all_of_them_sent() -> None:
    senders = Senders(2)
    begun: list[float] = []
    try:
        with fake_server(lambda _: (200, answer(3))) as home:
            url = f"{home}/classify"
            photos = prepared(url, [b"one", b"two"])
            done = senders.measure(url, photos, 3, warm_up_s=0.1, seconds=0.5, meanwhile=begun.append)
    finally:
        senders.close()
    assert len(begun) == 1
    assert done.images > 0
    assert done.images_per_s == pytest.approx(done.images / 0.5)
    assert (done.mean_batch, done.faults.total()) == (1.0, 0)
    assert 0 < done.p50_ms <= done.p99_ms
