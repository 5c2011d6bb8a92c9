"""Processes that tests start always end: even if a test hangs, a start fails half-way, or pytest itself is killed."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import processes, tiny
from tests.server import running
from tests.server.running import PATIENCE_S, ROOT, RunningServer, until

HANGING = """
import json, os, signal, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest
from tests import tiny
from tests.server.running import RunningServer, red_image

@pytest.fixture
def server(tmp_path):
    tiny.write(tmp_path)
    with RunningServer(tmp_path, timeout_ms=3_000_000) as running:
        pids = Path({pids!r})
        pids.with_name("new").write_text(json.dumps([process.pid for process in running.tree()]))
        pids.with_name("new").rename(pids)
        yield running

@pytest.mark.timeout({limit_s}, func_only=True)
def test_hangs(server):
    with ThreadPoolExecutor(1) as aside:
        os.kill(server.pid("engine"), signal.SIGSTOP)
        aside.submit(server.classify, red_image(1))
        threading.Event().wait()

def test_next():
    pass
"""


def hanging(folder: Path, limit_s: float) -> tuple[list[str | Path], Path]:
    """A command that runs a hanging test with a hanging server, and the file with the ids of its processes."""
    test, pids = folder / "test_hanging.py", folder / "pids"
    test.write_text(HANGING.format(limit_s=limit_s, pids=str(pids)))
    options = [
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
    ]
    return [sys.executable, "-m", "pytest", *options, test], pids


def are_gone(pids: Path) -> bool:
    return not any(map(is_running, json.loads(pids.read_bytes())))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_test_that_hangs_fails_and_what_it_started_is_gone_before_the_next(tmp_path: Path) -> None:
    command, pids = hanging(tmp_path, limit_s=1)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Timeout (>1.0s)" in done.stdout
    assert "1 failed, 1 passed" in done.stdout
    assert are_gone(pids)


def test_what_a_killed_pytest_has_started_is_gone(tmp_path: Path) -> None:
    command, pids = hanging(tmp_path, limit_s=PATIENCE_S)
    with processes.started(command, cwd=ROOT, stdout=subprocess.DEVNULL) as pytest_itself:
        until(pids.exists)
        pytest_itself.kill()
        until(lambda: are_gone(pids))


def test_a_start_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path)
    monkeypatch.setattr(running, "PATIENCE_S", 0.0)
    with pytest.raises(AssertionError, match="it is not ready"):
        RunningServer(tmp_path)
    assert not [one for one in psutil.Process().children(recursive=True) if str(tmp_path) in one.cmdline()]
