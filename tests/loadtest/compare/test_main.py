"""The whole command, with real servers: this one, and a rival."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loadtest.compare import __main__, rows
from tests import processes
from tests.loadtest import commands

ROOT = Path(__file__).parents[3]
PHOTOS = ROOT / "export" / "photos"
PATIENCE_S = 240.0


def options(repository: Path, folder: Path, *arguments: str) -> list[str | Path]:
    short = ["--rounds", "1", "--seconds", "0.4", "--warm-up", "0.1", "--baseline-seconds", "0.1"]
    places: list[str | Path] = ["--repository", repository, "--output", folder]
    model: list[str | Path] = ["--works", "tiny", "--model", "efficientnet_lite0", "--photos", PHOTOS]
    return [*short, *places, *model, *arguments]


@pytest.mark.usefixtures("installed")
def test_ours_and_a_rival_are_measured_and_told_of(model_repository: Path, tmp_path: Path) -> None:
    arguments = options(model_repository, tmp_path, "--servers", "ours,fastapi", "--connections", "1,4")
    done = commands.call(__main__.main, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows.read(tmp_path / "compare.jsonl")
    variants = [("ours", "onnx"), ("ours", "openvino"), ("fastapi", "plain"), ("fastapi", "tuned")]
    assert [row.key[1:4] for row in found] == [(*variant, load) for variant in variants for load in (1, 4)]
    for row in found:
        assert row.baseline
        assert row.measured
        assert row.baseline.images_per_s > 1
        assert row.measured.images_per_s > 1
        assert 0 < row.measured.p50_ms <= row.measured.p99_ms
        assert (row.measured.server_cpu_ms or 0) > 0.1
        assert row.measured.memory_mb > 10
        assert row.measured.same_class == 1
        assert row.measured.errors == 0, row.measured.faults
    text = (tmp_path / "compare.md").read_text()
    assert "python loadtest/compare --rounds 1" in text
    assert "Not one run" not in text
    assert "| **this server** |" in text
    assert "FastAPI 0." in text
    assert (tmp_path / "compare-tiny.svg").stat().st_size > 1000


def test_an_interrupted_run_ends_its_processes_and_is_resumed(model_repository: Path, tmp_path: Path) -> None:
    arguments = options(model_repository, tmp_path, "--servers", "ours", "--connections", "1")
    command = [sys.executable, "-u", ROOT / "loadtest" / "compare", *arguments]
    with processes.started(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        next(line for line in process.stdout if "images/s" in line)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert psutil.wait_procs(children, timeout=60)[1] == []
    known = (tmp_path / "compare.jsonl").read_text()
    assert known
    done = commands.call(__main__.main, *arguments, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "compare.jsonl").read_text().startswith(known)
    assert len(rows.read(tmp_path / "compare.jsonl")) == 2
    assert "Not one run but several" in (tmp_path / "compare.md").read_text()


def test_an_unknown_server_is_one_line(tmp_path: Path) -> None:
    done = commands.call(__main__.main, *options(tmp_path, tmp_path, "--servers", "apache"))
    assert done.returncode == 2
    assert "apache: choose from ours, fastapi, litserve, mosec, bentoml, ray, triton" in done.stderr


def test_a_repository_without_the_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "efficientnet_lite0").mkdir()
    done = commands.call(__main__.main, *options(tmp_path, tmp_path, "--servers", "ours"))
    assert done.returncode == 1
    assert "has no ONNX model" in done.stderr
