"""Files that are read again when they have changed."""

from pathlib import Path

import pytest

from server.watched import Watched


def read(*paths: Path) -> list[int]:
    return [int(path.read_text()) for path in paths]


def test_a_change_of_any_file_is_seen_once(tmp_path: Path) -> None:
    paths = tmp_path / "a", tmp_path / "b"
    for path in paths:
        path.write_text("1")
    watched = Watched(read, *paths)
    assert not watched.look()
    paths[1].write_text("22")
    assert watched.look()
    assert not watched.look()
    assert watched.content == [1, 22]


def test_files_are_read_again_in_any_case_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    reads: list[Path] = []
    watched = Watched(reads.append, tmp_path / "one")
    assert (watched.look(), watched.look(again=True), len(reads)) == (False, True, 2)


def test_what_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    watched = Watched(read, path)
    path.write_text("nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        watched.look()
    assert not watched.look()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        watched.look()
    assert watched.content == [1]
    path.write_text("333")
    assert watched.look()
    assert watched.content == [333]


def test_rights_are_looked_at_too(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    watched = Watched(read, path)
    written_ns = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == written_ns:  # the clock of some file systems has coarse ticks
        path.chmod(0o600)  # as programs that renew certificates may do after writing one
    assert watched.look()
