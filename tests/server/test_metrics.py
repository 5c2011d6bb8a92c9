"""Metrics of several processes, each of which opens its files as a real process does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(directory: Path, program: str) -> str:
    """What a process of its own prints that keeps its metrics in `directory`."""
    done = subprocess.run(
        [sys.executable, "-c", f"from server.metrics import Metrics, exposition\n{program}"],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_processes_add_up_and_a_restarted_one_goes_on_where_it_was(tmp_path: Path) -> None:
    count = "metrics.requests.labels('a', 'ok').inc(); metrics.pending.set({pending})"
    for identity, pending in (("http-0", 9), ("http-1", 2), ("http-0", 3)):
        run(tmp_path, f"metrics = Metrics('{identity}'); {count.format(pending=pending)}")
    files = {path.name for path in tmp_path.iterdir()}
    lines = run(tmp_path, "print(exposition()[0].decode())").splitlines()
    assert 'serving_requests_total{code="ok",model="a"} 3.0' in lines
    assert "serving_pending_requests 5.0" in lines  # the newest of each process
    run(tmp_path, "Metrics('http-0')")
    assert {path.name for path in tmp_path.iterdir()} == files
