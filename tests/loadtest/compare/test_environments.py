from pathlib import Path

import pytest

from loadtest.compare import environments
from loadtest.compare.environments import InstallError


def test_a_rival_is_installed_once_for_its_pins_and_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "RIVALS", tmp_path)
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    pins = tmp_path / "one.txt"
    pins.write_text("# nothing\n")
    programs = environments.ensure("one")
    assert (programs / "python").exists()
    trace = programs / "trace"
    trace.touch()
    assert environments.ensure("one") == programs
    assert trace.exists()
    pins.write_text("./nowhere\n")
    with pytest.raises(InstallError, match=r"one cannot be installed: .*nowhere"):
        environments.ensure("one")
    assert not trace.exists()
