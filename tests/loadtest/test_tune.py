import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from loadtest import tune
from loadtest.descent import Candidate
from tests import tiny
from tests.loadtest import commands

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "CONNECTIONS", (1, 2))
    monkeypatch.setattr(tune, "WARM_UP_S", 0.1)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return commands.call(tune.main, "--seconds", "0.3", "--repeats", "1", "--minutes", "5", *arguments)


def test_settings_are_found_compared_and_written_for_the_server(tmp_path: Path) -> None:
    tiny.write(tmp_path, work=4)
    env_file = tmp_path / "serving.env"
    arguments = ("--repository", tmp_path, "--try", "max-batch=1", "--try", "backend=tensorflow")
    done = run("--p99-ms", "1000", *arguments, "--write", env_file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "backend tensorflow" in done.stdout
    assert "does not start" in done.stdout
    assert "\nbest: " in done.stdout
    written = env_file.read_text().splitlines()
    assert written[0].startswith("# python -m server tune --p99-ms 1000")
    assert [line for line in written if not line.startswith("#")] in ([], ["SERVER_MAX_BATCH=1"])


def test_what_was_only_lucky_in_the_search_does_not_replace_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: Counter[str] = Counter()

    def score(candidate: Candidate, *_: object) -> tune.Score:
        measured[str(candidate)] += 1
        lucky = candidate and measured[str(candidate)] == 1
        return tune.Score(200.0 if lucky else 100.0, 5.0, 1)

    monkeypatch.setattr(tune, "_score", score)
    monkeypatch.setattr(tune, "_open_p99_ms", lambda *_: 5.0)
    done = run("--p99-ms", "100", "--try", "max_batch=1")
    assert done.returncode == 0, done.stderr
    assert "found: max_batch 1;" in done.stdout
    assert done.stdout.endswith("best: the defaults\n")


def test_a_target_out_of_reach_is_one_line(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    done = run("--p99-ms", "0.01", "--repository", tmp_path, "--try", "max_batch=1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: p99 within 0.01 ms is not met")
    assert done.stderr.count("\n") == 1


def test_no_model_is_said(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-m", "server", "tune", "--p99-ms", "100", "--repository", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "no model in" in done.stderr
