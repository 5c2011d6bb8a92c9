import json
import subprocess
from pathlib import Path

import pytest

from tests import tiny
from tests.loadtest import commands
from tests.loadtest.serving import answer, fake_server

SHORT = ("--connections", "1,4", "--seconds", "0.4", "--warm-up", "0.1")
PHOTOS = 3  # in export/photos


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return commands.run("bench.py", *SHORT, *arguments)


def test_right_answers_are_measured_against_the_baseline(tmp_path: Path) -> None:
    tiny.write(tmp_path, crop=224)
    result = tmp_path / "result.json"
    done = bench("--repository", tmp_path, "--json", result)
    assert done.returncode == 0, done.stderr
    measured = json.loads(result.read_text())
    assert measured["model"] == "tiny"
    assert measured["photos"] == PHOTOS
    assert all(one["images_per_s"] > 1 for one in measured["baselines"])
    assert [step["connections"] for step in measured["steps"]] == [1, 4]
    for step in measured["steps"]:
        assert step["images_per_s"] > 1
        assert 0 < step["p50_ms"] <= step["p95_ms"] <= step["p99_ms"] < 10_000
        assert 0 < step["share_of_baseline"] < 1.5  # over 1 if the machine was less busy than during the baseline
        assert 1 < step["server_cpu_ms"] < 1000
        assert 0 < step["useful_cpu"] < 1.5
        assert 0 <= step["client_share"] < 0.5
        assert 0 <= step["others_share"] <= 1
        assert 1 <= step["mean_batch"] <= step["connections"]
        assert step["errors"] == 0
        assert f"{step['images_per_s']:.1f}" in done.stdout


def test_refused_from_the_first_fails() -> None:
    with fake_server(lambda _: (500, b"broken")) as url:
        done = bench("--url", url)
    assert done.returncode == 1
    assert done.stderr == "error: status 500: broken\n"


@pytest.mark.parametrize(
    ("later", "reason"),
    [
        ((500, b"broken"), "error: status 500: broken"),
        ((200, answer(8)), "error: class 8 for a photo that was first found to be 7"),
        ((200, b"?"), "error: not an answer"),
    ],
)
def test_wrong_under_load_fails(later: tuple[int, bytes], reason: str, tmp_path: Path) -> None:
    with fake_server(lambda n: (200, answer(7)) if n < PHOTOS or n % 5 else later) as url:
        done = bench("--url", url, "--repository", tmp_path, "--connections", "2")
    assert done.returncode == 1
    assert reason in done.stderr
    assert "the baseline was not measured" in done.stdout


def test_server_that_does_not_start_fails(tmp_path: Path) -> None:
    done = bench("--repository", tmp_path)
    assert done.returncode == 1
    assert "the server did not start" in done.stderr
