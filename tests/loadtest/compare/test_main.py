"""The whole command, with real servers: this one, and the rival that installs quickest."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loadtest.compare import rows
from tests import processes

ROOT = Path(__file__).parents[3]
PHOTOS = ROOT / "export" / "photos"
PATIENCE_S = 240.0


def command(repository: Path, folder: Path, *arguments: str) -> list[str | Path]:
    short = ["--rounds", "1", "--seconds", "1", "--warm-up", "0.5", "--baseline-seconds", "0.3", "--connections", "1,4"]
    places: list[str | Path] = ["--repository", repository, "--output", folder]
    model: list[str | Path] = ["--works", "tiny", "--model", "efficientnet_lite0", "--photos", PHOTOS]
    return [sys.executable, "-u", ROOT / "loadtest" / "compare", *short, *places, *model, *arguments]


@pytest.mark.slow
def test_ours_and_a_rival_are_measured_and_told_of(model_repository: Path, environments: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = command(model_repository, tmp_path, "--servers", "ours,fastapi", "--environments", str(environments))
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE_S)
    if "cannot be installed" in done.stderr:
        pytest.skip("no package index can be reached")
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


@pytest.mark.slow
def test_an_interrupted_run_ends_its_processes_and_is_resumed(model_repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = command(model_repository, tmp_path, "--servers", "ours", "--rounds", "2")
    with processes.started(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        next(line for line in process.stdout if "images/s" in line)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert psutil.wait_procs(children, timeout=60)[1] == []
    known = (tmp_path / "compare.jsonl").read_text()
    assert known
    done = subprocess.run([*arguments, "--resume"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "compare.jsonl").read_text().startswith(known)
    assert len(rows.read(tmp_path / "compare.jsonl")) == 8
    assert "Not one run but several" in (tmp_path / "compare.md").read_text()


def test_an_unknown_server_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, tmp_path, "--servers", "apache"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "apache: choose from ours, fastapi, litserve, mosec, bentoml, ray, triton" in done.stderr


def test_a_repository_without_the_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "efficientnet_lite0").mkdir()
    done = subprocess.run(command(tmp_path, tmp_path, "--servers", "ours"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "has no ONNX model" in done.stderr
