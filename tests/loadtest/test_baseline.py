import json
import subprocess
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import ROOT
from tests.loadtest import commands

PHOTOS = sorted((ROOT / "export" / "photos").glob("*.jpg"))


def baseline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return commands.run("baseline.py", "--seconds", "0.2", *arguments)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    tiny.write(tmp_path, crop=224)
    return tmp_path


def test_baseline_is_cpus_over_the_best_cpu_seconds(repository: Path) -> None:
    done = baseline("--repository", repository, "--json", *PHOTOS)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert list(measured["inference"]) == ["1", "2", "4", "8"]
    best_ms = sum(min(pace["cpu_ms"] for pace in measured[part].values()) for part in ("decode", "inference"))
    assert measured["images_per_s"] == pytest.approx(1e3 * measured["cpus"] / best_ms)
    assert measured["lone_ms"] > 0


def test_table_names_the_model_and_the_baseline(repository: Path) -> None:
    done = baseline("--repository", repository, *PHOTOS)
    assert done.stdout.startswith("tiny version 1, 3 photos")
    assert "baseline of a server" in done.stdout


def test_missing_repository_is_one_line(tmp_path: Path) -> None:
    done = baseline("--repository", tmp_path, *PHOTOS)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no model in")
    assert done.stderr.count("\n") == 1
