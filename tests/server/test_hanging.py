"""Things that hang, such as a file that cannot be read or a log that nobody reads, hold up nothing else."""

import logging
import os
import select
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import NoReturn

import pytest

from server import logs
from server.aside import Aside
from tests import tiny
from tests.server.certificates import written
from tests.server.gated import REPOSITORY
from tests.server.running import PATIENCE_S, GatedServer, RunningServer, red_image, top1, until


def test_who_makes_a_call_aside_goes_on_and_is_told_in_order_what_came_of_it() -> None:
    aside, goes_on = Aside("test"), Event()
    heard: list[object] = []

    def fail() -> NoReturn:
        raise OSError("gone")

    def hear(done: Future[bool]) -> None:
        heard.append(done.exception() or done.result())

    aside.call(lambda: goes_on.wait(PATIENCE_S), hear)
    aside.call(fail, hear)
    aside.deliver()
    assert (heard, aside.idle) == ([], False)
    goes_on.set()
    until(lambda: aside.deliver() or aside.idle)  # type: ignore[func-returns-value]
    assert (heard[0], str(heard[1])) == (True, "gone")


def test_a_repository_that_hangs_keeps_nobody_from_anything_else(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path, "b")
    with GatedServer(tmp_path, default_model="a", reload_ms=50) as server, ThreadPoolExecutor(1) as aside:
        assert server.client.post("/v2/repository/models/b/unload").status_code == 200
        with server.hold(REPOSITORY):
            loading = aside.submit(server.client.post, "/v2/repository/models/b/load")
            server.kill_child("engine")
            assert top1(server.classify(red_image(7))) == 7
            assert not loading.done()
        assert loading.result().status_code == 200
        assert server.classify(red_image(7), model="b").status_code == 200
        with server.hold(REPOSITORY):
            server.kill_child("http-0")
            assert top1(server.classify(red_image(7))) == 7
            assert server.terminate() == 0


@contextmanager
def being_read(path: Path) -> Generator[None]:
    """Until the block ends, replace a file by a pipe, on which reading blocks."""
    kept = path.rename(path.with_name("kept"))
    os.mkfifo(path)
    ends: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):  # nobody reads it yet
            ends.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        return bool(ends)

    try:
        until(is_read)
        kept.rename(path)
        yield
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("file", ["keys.txt", "certificate.pem"])
def test_keys_and_certificates_that_hang_keep_nobody_from_anything_else(tmp_path: Path, file: str) -> None:
    tiny.write(tmp_path / "repository")
    certificate, key = written(tmp_path)
    (tmp_path / "keys.txt").write_text("known " + "0" * 64)
    flags = {"api_keys": tmp_path / "keys.txt", "tls_certificate": certificate, "tls_key": key}
    with RunningServer(tmp_path / "repository", **flags) as server:
        with being_read(tmp_path / file):
            for name in ("engine", "http-0"):
                server.kill_child(name)
        (tmp_path / "keys.txt").write_text("another " + "1" * 64)
        server.wait_for_line("API keys: another")
        with being_read(tmp_path / file):
            assert server.terminate() == 0


def test_a_log_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, access_log=True, stall_timeout_ms=3000) as server:
        with server.log_unread():
            for name in ("engine", "http-0"):
                server.kill_child(name)
            assert top1(server.classify(red_image(7))) == 7
        server.wait_for_line("POST /classify")  # nothing is lost
        with server.log_unread():
            assert server.terminate() == 0


def test_lines_that_nobody_reads_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING", 10)
    reader, writer = os.pipe()
    try:
        with os.fdopen(reader, "rb") as lines:
            printer = logs.Printer(writer)
            printer.emit(record("x" * 2**17))
            select.select([reader], [], [], PATIENCE_S)  # the pipe is being filled
            for _ in range(29):
                printer.emit(record("x"))
            for _ in range(11):
                lines.readline()
            printer.flush()
            last = record("last")
            printer.emit(last)
            assert last.__dict__["fields"] == {"lost": 19}
    finally:
        os.close(writer)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, "file.py", 1, text, None, None)
