"""The check of a model's digest before a pod's server starts."""

import subprocess
import sys
from pathlib import Path

from tests import tiny
from tests.server.running import ROOT


def pinned(repository: Path, name: str, sha256: str = "") -> tuple[int, str]:
    command = [sys.executable, "-IS", str(ROOT / "deploy" / "pinned.py"), str(repository), name, sha256]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.stderr
    return done.returncode, done.stdout.strip()


def test_the_newest_file_has_to_be_the_pinned_one(tmp_path: Path) -> None:
    old, new = tiny.write(tmp_path, version=9), tiny.write(tmp_path, version=10, work=1)
    assert pinned(tmp_path, "tiny") == (0, new.file.sha256)
    assert pinned(tmp_path, "tiny", new.file.sha256) == (0, new.file.sha256)
    status, reason = pinned(tmp_path, "tiny", old.file.sha256)
    assert status == 1
    assert f"pinned is {old.file.sha256}" in reason


def test_a_file_that_is_not_its_manifests_is_refused_without_a_pin(tmp_path: Path) -> None:
    found = tiny.write(tmp_path)
    (tmp_path / "tiny" / "1" / found.file.name).write_bytes(b"other")
    status, reason = pinned(tmp_path, "tiny")
    assert status == 1
    assert "export it again" in reason


def test_no_model_is_one_line_and_a_failure(tmp_path: Path) -> None:
    status, reason = pinned(tmp_path, "tiny")
    assert status == 1
    assert reason.startswith("tiny in ")
    assert "\n" not in reason
