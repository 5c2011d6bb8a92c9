import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from export import repository
from export.repository import RepositoryError
from models import manifest
from tests import tiny
from tests.export.drafts import MODEL, draft, everything


def test_published_version_is_whole_and_alone(tmp_path: Path) -> None:
    published = repository.publish(tmp_path, draft(), MODEL)
    folder = tmp_path / "cifar_resnet20" / "1"
    assert manifest.read(folder) == published
    assert manifest.read_model_file(folder, published) == MODEL
    assert everything(tmp_path / "cifar_resnet20") == ["1", "1/manifest.json", "1/model.onnx"]


def test_other_content_gets_the_next_number(tmp_path: Path) -> None:
    versions = [repository.publish(tmp_path, draft(fingerprint), MODEL).version for fingerprint in range(11)]
    assert versions == list(range(1, 12))


def test_same_content_is_published_once(tmp_path: Path) -> None:
    first = repository.publish(tmp_path, draft(), MODEL)
    assert repository.publish(tmp_path, draft(), MODEL) == first
    assert repository.find(tmp_path, "cifar_resnet20", first.fingerprint) == first
    assert repository.find(tmp_path, "cifar_resnet32", first.fingerprint) is None


def test_broken_version_keeps_its_number_and_hides_nothing(tmp_path: Path) -> None:
    repository.publish(tmp_path, draft(0), MODEL)
    (tmp_path / "cifar_resnet20" / "1" / manifest.FILE_NAME).write_text("{}")
    assert repository.publish(tmp_path, draft(0), MODEL).version == 2


def test_a_folder_that_is_no_version_counts_for_none(tmp_path: Path) -> None:
    for name in ("007", "0", "old", ".draft-1"):
        (tmp_path / "cifar_resnet20" / name).mkdir(parents=True)
    assert repository.publish(tmp_path, draft(), MODEL).version == 1


def test_exporters_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(lambda n: repository.publish(tmp_path, draft(n % 4), MODEL), range(32)))
    assert {known.version for known in published} == {1, 2, 3, 4}
    for known in published:
        assert manifest.read(tmp_path / known.name / str(known.version)) == known
    assert sorted(path.name for path in (tmp_path / "cifar_resnet20").iterdir()) == ["1", "2", "3", "4"]


KILLED_BEFORE_THE_RENAME = """
import os, pathlib, signal
from export import repository
from tests.export.drafts import MODEL, draft
pathlib.Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
repository.publish(pathlib.Path({folder!r}), draft(), MODEL)
"""


def test_killed_exporter_leaves_no_version(tmp_path: Path) -> None:
    code = KILLED_BEFORE_THE_RENAME.format(folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
    left = list((tmp_path / "cifar_resnet20").iterdir())
    assert len(left) == 1
    assert left[0].name.startswith(".")
    assert repository.find(tmp_path, "cifar_resnet20", draft().fingerprint) is None
    assert repository.publish(tmp_path, draft(), MODEL).version == 1


def test_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "repository").touch()
    with pytest.raises(RepositoryError, match="cannot be written"):
        repository.publish(tmp_path / "repository", draft(), MODEL)


def test_full_disk_is_said_and_leaves_what_there_was(tmp_path: Path) -> None:
    first = repository.publish(tmp_path, draft(0), MODEL)
    before = everything(tmp_path)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, unlimited[1]))  # like a full disk, it fails half-way
    try:
        with pytest.raises(RepositoryError, match="cannot be written: File too large"):
            repository.publish(tmp_path, draft(1), bytes(2**17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert everything(tmp_path) == before
    assert repository.find(tmp_path, first.name, first.fingerprint) == first


@pytest.mark.parametrize("folder", ["a file/repository", "/proc/repository"])
def test_repository_that_cannot_be_written_is_known_beforehand(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(RepositoryError, match=f"{folder} cannot be written: "):
        repository.check_room(tmp_path / folder)


def test_disk_without_room_is_known_beforehand_and_nothing_is_left(tmp_path: Path) -> None:
    repository.check_room(tmp_path / "new" / "repository", 1)
    with pytest.raises(RepositoryError, match=r"repository has \d+ MB left, and 1\d+ MB are needed"):
        repository.check_room(tmp_path / "new" / "repository", 10**18)
    assert everything(tmp_path) == []


def test_what_is_there_instead_of_a_model_in_fp32_is_told(tmp_path: Path) -> None:
    members = [tiny.write(tmp_path, "one"), tiny.write(tmp_path, "two")]
    tiny.write_ensemble(tmp_path, "both", members)
    tiny.quantised_for(tmp_path, "x86", "one-int8", "one")
    tiny.write(tmp_path, "broken")
    (tmp_path / "broken" / "1" / manifest.FILE_NAME).write_text("{}")
    for find in (repository.get, repository.find_fp32):
        with pytest.raises(RepositoryError, match="both is an ensemble: name one of its members, one, two"):
            find(tmp_path, "both")
    with pytest.raises(
        RepositoryError, match=r"one-int8 is a file of onnx in int8.*: name one, which it was made from"
    ):
        repository.find_fp32(tmp_path, "one-int8")
    with pytest.raises(RepositoryError, match=r"broken/1/manifest\.json: "):
        repository.get(tmp_path, "broken")
    with pytest.raises(RepositoryError, match=r"broken/1/manifest\.json: "):
        repository.find_fp32(tmp_path, "broken")
    with pytest.raises(RepositoryError, match=r"has no one version 7$"):
        repository.get(tmp_path, "one", 7)
    with pytest.raises(RepositoryError, match=r"has no one_int8; did you mean one-int8\?"):
        repository.get(tmp_path, "one_int8")
    with pytest.raises(RepositoryError, match="has no resnet50; it has both, broken, one, "):
        repository.get(tmp_path, "resnet50")
    with pytest.raises(RepositoryError, match=r"there is no model repository .*/nowhere: "):
        repository.get(tmp_path / "nowhere", "one")
