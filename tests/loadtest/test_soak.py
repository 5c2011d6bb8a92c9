import math
from pathlib import Path

import pytest

from loadtest.soak import growth
from tests import tiny
from tests.loadtest import commands


@pytest.mark.parametrize("engines", ["1", "2"])
def test_nothing_is_lost_in_a_short_soak(tmp_path: Path, engines: str) -> None:
    tiny.write(tmp_path / "repository", crop=224)
    short = ("--minutes", "0.05", "--every", "0.2", "--rate", "40", "--model", "tiny", "--engines", engines)
    done = commands.run("soak.py", *short, "--repository", tmp_path / "repository", "--write", tmp_path / "soak")
    assert "kept: lost requests 0" in done.stdout, done.stdout + done.stderr
    assert "kept: wrong answers 0" in done.stdout
    assert "engine killed" in done.stdout
    assert {path.name for path in tmp_path.glob("soak.*")} == {"soak.html", "soak.md", "soak.svg"}


def test_a_leak_is_seen_through_restarts() -> None:
    seconds = [float(second) for second in range(50, 150)]
    flat = [100.0 if second % 10 else 30.0 for second in range(100)]
    leaking = [value + second / 2 for second, value in enumerate(flat)]
    assert growth(seconds, flat) == 0
    assert growth(seconds, leaking) == pytest.approx(0.5, abs=0.05)


def test_without_measurements_nothing_is_said_of_growth() -> None:
    assert math.isnan(growth([1.0], [2.0]))
