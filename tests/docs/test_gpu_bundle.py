"""Files that travel in folders of a bounded size arrive whole, in whatever order the folders come."""

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs.measurements.gpu import bundle


@given(sizes=st.lists(st.integers(0, 50), max_size=10), room=st.integers(1, 30))
def test_every_byte_is_in_one_folder_and_none_has_too_many(sizes: list[int], room: int) -> None:
    named = [(str(at), size) for at, size in enumerate(sizes)]
    folders = list(bundle.plan(named, room))
    assert all(sum(end - start for _, start, end in folder) <= room for folder in folders)
    for name, size in named:
        pieces = sorted((start, end) for folder in folders for file, start, end in folder if file == name)
        assert [start for start, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
        assert pieces[-1][1] == size


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A large file between two small ones."""
    found = {}
    for name, size in (("small", 10), ("folder/large", 250), ("last", 3)):
        path = tmp_path / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(name).randbytes(size))
        found[name] = path
    return found


def test_folders_that_come_one_by_one_in_any_order_give_whole_files(tmp_path: Path, files: dict[str, Path]) -> None:
    folders = bundle.write(tmp_path / "bundle", files.items(), 100)
    assert [folder.name for folder in folders] == ["1", "2", "3"]
    target, there = tmp_path / "target", tmp_path / "there"
    for folder in (folders[2], folders[0], folders[1]):
        assert not (target / "folder" / "large").exists()
        shutil.copytree(folder, there / folder.name)
        whole, damaged = bundle.unpack(there, target)
        assert not damaged
        shutil.rmtree(there)  # as if each call replaced what the last one brought
    assert {str(path.relative_to(target)) for path in whole} == set(files)
    assert all((target / name).read_bytes() == path.read_bytes() for name, path in files.items())
    assert {path.name for path in target.rglob("*")} == {"small", "folder", "large", "last"}


def test_a_folder_that_comes_again_changes_nothing(tmp_path: Path, files: dict[str, Path]) -> None:
    bundle.write(tmp_path / "bundle", files.items(), 100)
    first = bundle.unpack(tmp_path / "bundle", tmp_path / "target")
    assert bundle.unpack(tmp_path / "bundle", tmp_path / "target") == first


def test_a_file_that_was_damaged_on_the_way_is_refused_and_can_come_again(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    folders = bundle.write(tmp_path / "bundle", files.items(), 100)
    pieces = json.loads((folders[1] / bundle.LIST).read_text())
    piece = folders[1] / pieces[0]["stored_as"]
    right = piece.read_bytes()
    piece.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    whole, damaged = bundle.unpack(tmp_path / "bundle", tmp_path / "target")
    assert [path.name for path in whole] == ["last", "small"]
    assert damaged == ["folder/large has another digest than its bundle says: bring all its folders again"]
    piece.write_bytes(right)
    bundle.unpack(tmp_path / "bundle", tmp_path / "target")
    assert (tmp_path / "target" / "folder" / "large").read_bytes() == files["folder/large"].read_bytes()


def test_a_bundle_replaces_an_older_one(tmp_path: Path, files: dict[str, Path]) -> None:
    bundle.write(tmp_path / "bundle", files.items(), 50)
    newer = bundle.write(tmp_path / "bundle", files.items(), 1000)
    assert bundle.folders(tmp_path / "bundle") == newer
