import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fuzz.seeds import seeds

INPUTS = 8_000


def fuzz(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # Through a shell: a process inherits the peak memory of its parent, and pytest's is large.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "tests.fuzz.decoder", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_no_bytes_crash_hang_or_grow_the_decoder(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    done = fuzz(f"-runs={INPUTS}", "-seed=1", f"-artifact_prefix={tmp_path}/")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {INPUTS} runs" in done.stderr


def test_an_input_is_run_again_alone(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    path = tmp_path / "one"
    path.write_bytes(seeds()["PNG"])
    done = fuzz(path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Executed" in done.stderr
