"""Making cascades of trained networks, and of networks that each see one colour."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from export import cascade, cascading, ensemble
from models import manifest
from models.manifest import Cascade, Share
from tests import tiny
from tests.server.running import RunningServer


@pytest.fixture(scope="module")
def repository(cifar_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the four trained networks, to which others may be added."""
    return Path(shutil.copytree(cifar_repository, tmp_path_factory.mktemp("cascade") / "repository"))


def some_of(shared: Path, folder: Path, every: int) -> Path:
    """A folder with every `every`-th of the CIFAR test images, by class."""
    for path in sorted((shared / "data" / "cifar10-test").rglob("*.jpg"))[::every]:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).symlink_to(path)
    return folder


def read(repository: Path, name: str) -> Cascade:
    found = manifest.read_entry(repository / name / "1")
    assert isinstance(found, Cascade)
    return found


def test_depth_has_the_accuracy_of_an_ensemble_that_few_images_reach(
    repository: Path, shared: Path, tmp_path: Path
) -> None:
    images = some_of(shared, tmp_path / "images", 5)
    options = ["--repository", str(repository), "--images", str(images)]
    four = [f"cifar_resnet{depth}" for depth in (20, 32, 44, 56)]
    assert ensemble.main(["four", *four, *options]) == 0
    deep = ["deep", four[0], four[3], "four", *options, "--min-agreement", "97", "--seconds", "0"]
    assert cascade.main(deep) == 0
    written = read(repository, "deep")
    assert (written.tuned_on, written.images, written.reference) == (100, 100, "four")
    assert written.top1_agreement.share >= 0.97
    assert written.accuracy
    assert written.reference_accuracy
    assert abs(written.accuracy.top1 - written.reference_accuracy.top1) <= 3  # as many as may differ
    assert written.members[0].answered > 0.5
    assert written.members[-1].answered < 0.35
    paths = sorted(images.rglob("*.jpg"))[1::2]  # the images that the figures come from
    with RunningServer(repository, models="deep") as server:
        answers = [answer.json() for answer in server.classify_all([path.read_bytes() for path in paths], 4)]
    assert not any(answer["cut_short"] for answer in answers)
    counts = Counter(answer["answered_by"] for answer in answers)
    assert [counts[member.name] / 100 for member in written.members] == [
        pytest.approx(member.answered, abs=0.011) for member in written.members
    ]
    right = sum(
        answer["predictions"][0]["label"] == path.parent.name for answer, path in zip(answers, paths, strict=True)
    )
    assert right == pytest.approx(written.accuracy.top1, abs=1.01)


def test_an_exact_cascade_makes_its_first_member_and_uses_no_image_twice(
    repository: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = some_of(shared, tmp_path / "images", 10)
    (images / "notes.jpg").write_text("none of a class, and no image")
    command = ["--exact", "cifar_resnet20", "--repository", str(repository), "--images", str(images)]
    command += ["--min-agreement", "90", "--seconds", "0"]
    assert cascade.main(command) == 0, capsys.readouterr().err
    written = read(repository, "cifar_resnet20-exact")
    assert [member.name for member in written.members] == ["cifar_resnet20-int8", "cifar_resnet20"]
    assert (written.tuned_on, written.images) == (33, 33)
    first = manifest.read(repository / "cifar_resnet20-int8" / "1")
    assert first.conversion
    assert first.conversion.calibration
    assert first.conversion.calibration.images == 34
    told = capsys.readouterr()
    assert told.err.startswith(f"left out: {images}/notes.jpg ")
    assert "cifar_resnet20-int8 version 1 is in the repository" in told.out
    assert "--default-model cifar_resnet20-exact. It has no logits, features," in told.out
    assert cascade.main(command) == 0
    assert "calibrate" not in capsys.readouterr().out  # both exist already
    assert len(list((repository / "cifar_resnet20-exact").iterdir())) == 1


def paint(folder: Path, *colours: tuple[int, int], between: int | None = None) -> Path:
    """Images of these levels of red and green, but with one level more red in some of their 32 columns.

    In `between` columns; by default in 0 to 9, one more with each image, so that a model of red is less and less sure.
    """
    folder.mkdir(exist_ok=True)
    for number, (red, green) in enumerate(colours, len(list(folder.iterdir()))):
        picture = Image.new("RGB", (32, 32), (red, green, 0))
        picture.paste((red + 1, green, 0), (0, 0, number // 2 % 10 if between is None else between, 32))
        picture.save(folder / f"{number:03}.png")
    return folder


@pytest.fixture
def tinies(tmp_path: Path) -> Path:
    """Models `red` and `green`, which see one colour each."""
    tiny.write(tmp_path / "repository", "red")
    tiny.write(tmp_path / "repository", "green", channel=1)
    return tmp_path / "repository"


def make(repository: Path, images: Path, *options: str) -> int:
    given = ["both", "red", "green", "--repository", str(repository), "--images", str(images), "--seconds", "0"]
    return cascade.main([*given, *options])


def test_a_rule_that_separates_right_from_wrong_is_found_and_few_images_prove_little(
    tinies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = paint(tmp_path / "images", *[(red, red) for red in range(10, 90)])
    paint(images, *[(red, 200) for red in range(10, 30)], between=15)
    assert make(tinies, images) == 0, capsys.readouterr().err
    first, last = read(tinies, "both").members
    assert first.rule
    assert 0.5 < first.answered <= 0.8  # at most as many as are right, and not many fewer
    assert first.answered + last.answered == 1
    assert first.top1_agreement.share == 0.8
    printed = capsys.readouterr().out
    assert "0 of 50 wrong proves no more than 92.9%; to prove 99.9%, at that rate, takes about 3688 images" in printed


def test_images_never_prove_all() -> None:
    many: dict[str, Any] = {"images": 8000, "top1_agreement": Share(share=1, low=0.99954, high=1)}
    assert cascading.what_it_proves(Cascade.model_construct(min_agreement=0.999, **many)) == (
        "0 of 8000 wrong proves 99.95% or more"
    )
    few = Cascade.model_construct(min_agreement=0.9998, **many)
    assert cascading.what_it_proves(few).endswith("; to prove 99.98%, at that rate, takes about 18443 images")


def test_the_same_cascade_twice_is_one_version_and_another_target_is_another(tinies: Path, tmp_path: Path) -> None:
    images = paint(tmp_path / "images", *[(red, red) for red in range(10, 70)])
    for target in ("99.9", "99.9", "99"):
        assert make(tinies, images, "--min-agreement", target) == 0
    assert sorted(path.name for path in (tinies / "both").iterdir()) == ["1", "2"]


def test_what_does_not_hold_on_the_other_half_is_not_published(
    tinies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = paint(tmp_path / "images", *[(red, red if red % 2 == 0 else 200) for red in range(10, 70)])
    assert make(tinies, images) == 1
    assert "agreement with green is 20.0% on 30 images, 99.9 % is wanted" in capsys.readouterr().err
    assert not (tinies / "both").exists()


def test_members_that_are_never_right_are_worth_nothing(
    tinies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = paint(tmp_path / "images", *[(red, 200) for red in range(10, 50)])
    assert make(tinies, images) == 1
    assert "no member is ever sure enough but the last" in capsys.readouterr().err
    tiny.write(tinies, "blue", channel=2)
    assert make(tinies, images, "--of", "blue") == 1
    assert "the last member itself differs too often" in capsys.readouterr().err
    assert not (tinies / "both").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "red", "nothing"], "has no nothing"),
        (["new", "red"], "two to eight members"),
        (["new", "red", "red:1"], "none twice"),
        (["new", "red", "seven"], "other classes"),
        (["new", "red", "sure"], "gives sigmoid"),
        (["new", "red", "known"], "known is a cascade: name its members"),
        (["new"], "name the cascade and its members"),
        ([], "name the cascade and its members"),
        (["new", "red", "--exact", "green"], "--exact has its own members"),
        (["--exact", "red"], "3 images are too few"),
    ],
)
def test_what_does_not_go_together_is_one_line_and_writes_nothing(
    tinies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    tiny.write(tinies, "sure", activation="sigmoid")
    seven = tiny.write(tinies, "seven")
    labels = tuple(label.model_copy(update={"label": f"other {label.label}"}) for label in seven.labels)
    changed = seven.model_copy(update={"labels": labels})
    (tinies / "seven" / "1" / manifest.FILE_NAME).write_text(changed.model_dump_json())
    tiny.write_cascade(tinies, "known", [manifest.read(tinies / name / "1") for name in ("red", "green")])
    images = paint(tmp_path / "images", (1, 1), (2, 2), (3, 3))
    before = sorted(tinies.iterdir())
    assert cascade.main([*arguments, "--repository", str(tinies), "--images", str(images)]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert sorted(tinies.iterdir()) == before
