"""The folder of a run, and the folders that killed servers left behind."""

import fcntl
import os
from pathlib import Path

import pytest

from server.run_folder import OWNER, PREFIX, RunFolder, remove_stale
from tests import tiny
from tests.server.running import RunningServer, red_image


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_what_a_killed_server_leaves_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    tiny.write(repository)
    with RunningServer(repository) as living:
        (kept,) = tmp_path.glob(f"{PREFIX}*")
        with RunningServer(repository) as killed:
            killed.kill()
        assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 2
        with RunningServer(repository) as third:
            third.wait_for_line("removed .*, left by a killed server")
            assert living.classify(red_image(7)).status_code == 200
            assert (kept / OWNER).read_text() == f"{living.process.pid}\n"
            assert third.terminate() == 0
        assert list(tmp_path.glob(f"{PREFIX}*")) == [kept]
        assert living.terminate() == 0
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_what_is_not_certainly_a_dead_runs_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}new").mkdir()  # has no owner yet
    (tmp_path / f"{PREFIX}file").write_text("")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / OWNER).write_text("1\n")
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    pipe = tmp_path / f"{PREFIX}linked"
    pipe.mkdir()
    (pipe / OWNER).symlink_to(elsewhere / OWNER)
    before = sorted(tmp_path.iterdir())
    remove_stale()
    assert sorted(tmp_path.iterdir()) == before
    assert (elsewhere / OWNER).exists()


def test_a_folder_is_gone_after_its_run(tmp_path: Path) -> None:
    folder = RunFolder()
    remove_stale()
    assert list(folder.path.iterdir()) == [folder.path / OWNER]
    descriptor = os.open(folder.path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):  # so that systemd-tmpfiles keeps out of it
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(descriptor)
    folder.remove()
    assert not list(tmp_path.iterdir())
