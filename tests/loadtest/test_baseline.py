import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PHOTOS = sorted((ROOT / "export" / "photos").glob("*.jpg"))


def baseline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "loadtest" / "baseline.py", "--seconds", "0.5", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_baseline_is_cpus_over_the_best_cpu_seconds(model_repository: Path) -> None:
    done = baseline("--repository", model_repository, "--json", *PHOTOS)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert list(measured["inference"]) == ["1", "2", "4", "8"]
    best_ms = sum(min(pace["cpu_ms"] for pace in measured[part].values()) for part in ("decode", "inference"))
    assert measured["images_per_s"] == pytest.approx(1e3 * measured["cpus"] / best_ms)
    assert measured["lone_ms"] > 0


def test_table_names_the_model_and_the_baseline(model_repository: Path) -> None:
    done = baseline("--repository", model_repository, *PHOTOS)
    assert done.stdout.startswith("efficientnet_lite0 version 1, 3 photos")
    assert "baseline of a server" in done.stdout


def test_missing_repository_is_one_line(tmp_path: Path) -> None:
    done = baseline("--repository", tmp_path, *PHOTOS)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no model in")
    assert done.stderr.count("\n") == 1
