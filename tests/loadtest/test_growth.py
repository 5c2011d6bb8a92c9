import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[2]


def growth(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "loadtest" / "growth.py", "--seconds", "0.3", "--warm-up", "0.1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_every_step_is_a_line_a_point_and_measured_once(tmp_path: Path) -> None:
    repository, out = tmp_path / "repository", tmp_path / "growth.jsonl"
    tiny.write(repository)
    arguments = ("--repository", repository, "--out", out, "--dimensions", "models,depth")
    done = growth(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["dimension"], one["value"]) for one in records] == [("models", n) for n in (1, 2, 4, 8)]
    assert all(min(one["images_per_s"], one["server_cpu_ms"], one["memory_mb"], one["start_s"]) > 0 for one in records)
    assert done.stdout.count("missing: python export/to_onnx.py resnet") == 5
    assert (tmp_path / "growth-models.svg").read_text().startswith("<?xml")
    assert not (tmp_path / "growth-depth.svg").exists()

    with out.open("a") as lines:
        lines.write('{"dimension": "mod')  # as if it had been killed
    again = growth(*arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("  known") == 4
    assert [json.loads(line) for line in out.read_text().splitlines()] == records


def test_an_unknown_dimension_is_named() -> None:
    done = growth("--dimensions", "models,colour")
    assert done.returncode == 2
    assert "colour: choose from workers" in done.stderr
