import shutil
from pathlib import Path

import numpy as np
import pytest

from export import ensemble
from models import manifest
from models.manifest import Ensemble
from tests import tiny
from tests.server.running import RunningServer

MEMBERS = [f"cifar_resnet{depth}" for depth in (20, 32, 44, 56)]


@pytest.fixture(scope="module")
def repository(cifar_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the four trained networks, to which an ensemble may be added."""
    return Path(shutil.copytree(cifar_repository, tmp_path_factory.mktemp("ensemble") / "repository"))


def test_an_ensemble_of_trained_networks_beats_its_best_member_and_serves_what_it_measured(
    repository: Path, shared: Path
) -> None:
    images = shared / "data" / "cifar10-test"
    assert ensemble.main(["four", *MEMBERS, "--repository", str(repository), "--images", str(images)]) == 0
    written = manifest.read_entry(repository / "four" / "1")
    assert isinstance(written, Ensemble)
    assert written.accuracy is not None
    assert written.images == 1000
    assert written.accuracy.top1 > max(member.accuracy.top1 for member in written.members if member.accuracy)
    with RunningServer(repository, models="four") as server:
        paths = sorted(images.rglob("*.jpg"))[::4]
        answers = server.classify_all([path.read_bytes() for path in paths], 8)
    labels = [answer.json()["predictions"][0]["label"] for answer in answers]
    right = np.mean([label == path.parent.name for label, path in zip(labels, paths, strict=True)])
    assert abs(100 * right - written.accuracy.top1) < 5  # 250 images, a quarter: standard deviation 2.2 %


def test_the_same_ensemble_twice_is_one_version(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "repository")
    for _ in range(2):
        assert ensemble.main(["two", *MEMBERS[:2], "--repository", str(tmp_path / "repository")]) == 0
    assert [path.name for path in (tmp_path / "repository" / "two").iterdir()] == ["1"]


def test_each_member_is_measured_by_the_backend_that_serves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write(tmp_path)
    tiny.write_torch(tmp_path, "tiny-torch")
    assert ensemble.main(["both", "tiny", "tiny-torch", "--repository", str(tmp_path)]) == 0, capsys.readouterr().err
    written = manifest.read_entry(tmp_path / "both" / "1")
    assert isinstance(written, Ensemble)
    assert (written.images, written.agreement) == (3, 1)


def test_probabilities_of_different_kinds_have_no_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tmp_path, "usual")
    tiny.write(tmp_path, "own", activation="sigmoid")
    assert ensemble.main(["both", "usual", "own", "--repository", str(tmp_path)]) == 1
    assert "own gives sigmoid and usual softmax" in capsys.readouterr().err


def test_a_member_that_sees_other_pixels_makes_another_ensemble(tmp_path: Path) -> None:
    """Although its file has the same bytes, since it does not contain how images are resized."""
    for version in (1, 2):
        known = tiny.write(tmp_path, "a", version)
        path = tmp_path / "a" / str(version) / manifest.FILE_NAME
        path.write_text(known.model_copy(update={"fingerprint": f"{version:064x}"}).model_dump_json())
        tiny.write(tmp_path, "b", version)
        assert ensemble.main(["both", "a", "b", "--repository", str(tmp_path)]) == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["cifar_resnet20", "nothing"], "has no nothing"),
        (["cifar_resnet20"], "at least two members"),
        (["cifar_resnet20", "cifar_resnet20:1"], "none twice"),
        (["cifar_resnet20", "cifar_resnet32:x"], "no member"),
        (["cifar_resnet20", "tiny"], "other classes"),
    ],
)
def test_what_does_not_go_together_is_one_line_and_writes_nothing(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], members: list[str], message: str
) -> None:
    shutil.copytree(repository, tmp_path / "repository")
    tiny.write(tmp_path / "repository")
    assert ensemble.main(["wrong", *members, "--repository", str(tmp_path / "repository")]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "repository" / "wrong").exists()
