import sys
from pathlib import Path

import httpx
import psutil
import pytest

from loadtest import processes
from loadtest.processes import StartError
from tests import tiny
from tests.server.running import until

DAEMON = """
import os, signal
if os.fork():
    os._exit(0)
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pause()
"""
SERVER = f"""
import subprocess, sys, signal
subprocess.Popen([sys.executable, "-c", {DAEMON!r}]).wait()
print("it serves", flush=True)
signal.pause()
"""


def test_a_daemon_that_left_the_tree_is_counted_and_ended(tmp_path: Path) -> None:
    with processes.start([sys.executable, "-c", SERVER], {}, tmp_path, tmp_path) as running:
        until(lambda: "it serves" in running.log_tail())
        members = running.members()
        assert len(members) == 2
        assert psutil.Process(running.process.pid).children() == []
        assert processes.pss_bytes(members) > 2**20
    assert running.has_ended
    psutil.wait_procs(members, timeout=60)
    assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in members)


def test_an_interrupt_ends_them(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        processes.start([sys.executable, "-c", SERVER], {}, tmp_path, tmp_path) as running,
    ):
        raise KeyboardInterrupt
    assert running.has_ended
    assert running.members() == []


def test_home_and_temporary_files_are_in_its_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os, tempfile; print(os.environ['HOME'], tempfile.gettempdir())"]
    with processes.start(command, {}, tmp_path, tmp_path) as running:
        until(lambda: running.has_ended)
    assert running.log_tail() == f"{tmp_path} {tmp_path}"


def test_our_own_server_is_where_it_says_until_it_ends(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with processes.serve("--repository", str(tmp_path), "--http-workers", "1", quiet=True) as server:
        members = server.members()
        assert set(server.children) == {"engine", "http-0"}
        assert set(server.children.values()) <= {member.pid for member in members}
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        server.running.stop()
        with pytest.raises(StartError, match="has ended"):
            server.children  # noqa: B018
    assert psutil.wait_procs(members, timeout=60)[1] == []


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(StartError, match=r"(?s)did not start:.*no model in"),
        processes.serve("--repository", str(tmp_path), quiet=True),
    ):
        pass


def test_a_server_that_has_said_why_on_the_terminal_is_not_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(StartError, match=r"^the server did not start, as it said above$"),
        processes.serve("--repository", str(tmp_path)),
    ):
        pass
    assert "no model in" in capfd.readouterr().err
