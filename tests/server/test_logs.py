"""Log lines, from formatters and from the processes of a running server."""

import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from server import logs
from tests import tiny
from tests.server.running import PATIENCE_S, ROOT, GatedServer, RunningServer, red_image, run_without_engine, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, log_format="json", access_log=True) as running:
        yield running


def warning(line: int, created_s: float) -> logging.LogRecord:
    """A record made by a line of code at some time."""
    record = logging.LogRecord("name", logging.WARNING, "file.py", line, "text", None, None)
    record.created = created_s
    return record


def run(program: str) -> list[dict[str, Any]]:
    """What a program logs as JSON in a separate process."""
    done = subprocess.run(
        [sys.executable, "-c", f"import logging\nfrom server import logs\nlogs.configure('info', 'json')\n{program}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_every_line_of_every_process_is_one_json_object(server: RunningServer) -> None:
    server.kill_child("engine")
    assert server.client.post("/classify", content=red_image(3), headers={"X-Request-ID": "mine"}).status_code == 200
    assert server.classify(b"nothing").status_code == 415
    assert server.terminate() == 0
    server.wait_for_line("the server has ended")
    lines = [json.loads(line) for line in server.lines[:-1]]
    assert {"MainProcess", "engine", "http-0"} <= {line["process"] for line in lines}
    for line in lines:
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
        assert line["level"] in {"info", "error"}
        assert line["message"]
        assert line["logger"]
    answered, refused = [line for line in lines if "status" in line]
    assert answered["ms"] > 0
    names = ("method", "path", "status", "bytes_in", "request_id", "client")
    assert [answered[name] for name in names] == ["POST", "/classify", 200, len(red_image(3)), "mine", "127.0.0.1"]
    assert answered["bytes_out"] > 100
    assert (refused["status"], "trace_id" in refused) == (415, False)


def test_a_process_has_the_name_that_the_log_calls_it_by(server: RunningServer) -> None:
    names = ["engine", "http-0"]
    assert [psutil.Process(server.pid(name)).name() for name in names] == names


def test_a_path_is_logged_as_it_came_without_its_query_and_only_so_far(server: RunningServer) -> None:
    server.client.get("/models%0Aforged?key=secret")
    server.client.get("/" + "x" * 9999)
    server.wait_for_line("xxx")
    paths = [json.loads(line).get("path") for line in server.lines]
    assert "/models%0Aforged" in paths
    assert max(len(path) for path in paths if path) == 256
    assert not [line for line in server.lines if "secret" in line]


def test_the_client_is_whom_a_trusted_proxy_names(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, access_log=True, trusted_proxies="127.0.0.0/8,::1") as server:
        server.client.get("/livez", headers={"X-Forwarded-For": "1.2.3.4, 198.51.100.1"})
        server.wait_for_line(r"GET /livez .*client=198\.51\.100\.1")


def test_a_client_that_leaves_is_logged(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with GatedServer(tmp_path, access_log=True) as server, server.hold(1):
        with server.post_and_keep_open(red_image(1)):
            until(lambda: server.pending() == 1)
        server.wait_for_line(r"POST /classify method=POST path=/classify status=499 ms=\S+ bytes_in=\d+ bytes_out=0")


def test_requests_are_not_logged_unless_it_is_asked_for(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path) as server:
        server.classify(red_image(3))
        assert server.terminate() == 0
        server.wait_for_line("the server has ended")
        assert not [line for line in server.lines if "/classify" in line]


def test_an_exception_is_in_the_line_that_tells_of_it() -> None:
    program = (
        "try:\n 1 / 0\nexcept ZeroDivisionError:\n logging.exception('two\\nlines', extra=logs.fields(a=1, b=None))"
    )
    (line,) = run(program)
    assert (line["level"], line["message"], line["a"], "b" in line) == ("error", "two\nlines", 1, False)
    assert re.search(r"^Traceback .*ZeroDivisionError: division by zero$", line["exception"], re.DOTALL)


def test_what_is_not_logged_by_us_is_json_too() -> None:
    warned, failed = run("import warnings; warnings.warn('careful', stacklevel=1); raise ValueError('broken')")
    assert "careful" in warned["message"]
    assert "ValueError: broken" in failed["exception"]


def test_a_child_that_fails_says_why_in_its_log(tmp_path: Path) -> None:
    code, output = run_without_engine(tmp_path, SERVER_LOG_FORMAT="json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert code == 1
    assert any(line["process"] == "engine" and "Traceback" in line.get("exception", "") for line in lines)
    assert (lines[-1]["level"], "the engine cannot start" in lines[-1]["message"]) == ("critical", True)


def test_a_flood_of_one_warning_is_cut_short_and_counted() -> None:
    bursts = logs.Bursts()
    printed = [bursts.filter(warning(1, 100 + number / 1000)) for number in range(1000)]
    assert printed == [True] * logs.BURST + [False] * (1000 - logs.BURST)
    assert bursts.filter(warning(2, 101))  # another place in the code
    later = warning(1, 100 + logs.BURST_S)
    assert bursts.filter(later)
    assert later.__dict__["fields"] == {"left_out": 1000 - logs.BURST}
    once_more = warning(1, 101 + logs.BURST_S)
    assert bursts.filter(once_more)
    assert "fields" not in once_more.__dict__


def test_a_flood_does_not_hide_what_is_no_warning() -> None:
    bursts = logs.Bursts()
    record = warning(1, 1)
    record.levelno = logging.INFO
    assert all(bursts.filter(record) for _ in range(1000))


def test_refused_connections_do_not_flood_the_log(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with (
        RunningServer(tmp_path, max_connections=1) as server,
        socket.create_connection((server.client.base_url.host, server.client.base_url.port)),
    ):
        for _ in range(3 * logs.BURST):
            assert server.client.get("/models").status_code == 503
        assert server.terminate() == 0
        server.wait_for_line("the server has ended")
        assert 0 < len([line for line in server.lines if "WARNING" in line]) <= logs.BURST
