import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest import growth
from tests import tiny
from tests.loadtest import commands


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return commands.call(growth.main, "--seconds", "0.3", "--warm-up", "0.1", *arguments)


def test_every_step_is_a_line_a_point_and_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(growth.DIMENSIONS, "models", replace(growth.DIMENSIONS["models"], values=(1, 2)))
    repository, out = tmp_path / "repository", tmp_path / "growth.jsonl"
    tiny.write(repository)
    arguments = ("--repository", repository, "--out", out, "--dimensions", "models,depth")
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["dimension"], one["value"]) for one in records] == [("models", n) for n in (1, 2)]
    assert all(min(one["images_per_s"], one["server_cpu_ms"], one["memory_mb"], one["start_s"]) > 0 for one in records)
    assert len(re.findall(r"missing: \S*python export/to_onnx.py resnet", done.stdout)) == 5
    assert (tmp_path / "growth-models.svg").read_text().startswith("<?xml")
    assert not (tmp_path / "growth-depth.svg").exists()

    with out.open("a") as lines:
        lines.write('{"dimension": "mod')  # as if it had been killed
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("  known") == 2
    assert [json.loads(line) for line in out.read_text().splitlines()] == records


def test_an_unknown_dimension_is_named() -> None:
    done = run("--dimensions", "models,colour")
    assert done.returncode == 2
    assert "colour: choose from workers" in done.stderr
