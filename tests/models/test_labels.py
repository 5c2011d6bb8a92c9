import json
from pathlib import Path

import pytest

from models import labels
from models.labels import LabelsError


def names(path: Path) -> list[str]:
    return [label.label for label in labels.read(path)]


def test_imagenet_classes_are_in_the_order_of_their_wordnet_ids() -> None:
    ids = [label.wordnet_id or "" for label in labels.imagenet()]
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)


def test_imagenet_label_is_one_name() -> None:
    assert labels.imagenet()[0].label == "tench"
    assert labels.imagenet()[999].label == "toilet tissue"
    assert not any("," in label.label for label in labels.imagenet())


def test_imagenet_labels_agree_with_the_sample_photos(shared: Path) -> None:
    photos = sorted((shared / "data" / "imagenet-sample").iterdir())
    every_fourth = labels.imagenet()[::4]
    assert len(photos) == len(every_fourth)
    for photo, label in zip(photos, every_fourth, strict=True):
        assert photo.stem == f"{label.wordnet_id}_{label.label.replace(' ', '_')}"


def test_cifar10_labels_agree_with_the_test_images(shared: Path) -> None:
    folders = sorted(path.name for path in (shared / "data" / "cifar10-test").iterdir())
    assert [label.label for label in labels.cifar10()] == folders


def test_text_file_has_a_label_a_line(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n  Zürich \ndog, hot\n", encoding="utf-8")
    assert names(tmp_path / "labels.txt") == ["cat", "Zürich", "dog, hot"]


def test_json_file_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(["cat", "dog"]))
    assert names(tmp_path / "labels.json") == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", b"cat\n\ndog\n"),
        ("labels.txt", b"caf\xe9\n"),
        ("labels.json", b'{"0": "cat"}'),
        ("labels.json", b'["cat", 1]'),
        ("labels.json", b'["cat"'),
    ],
    ids=["empty line", "not UTF-8", "object", "number", "cut"],
)
def test_file_of_something_else_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelsError, match=name):
        labels.read(tmp_path / name)


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="No such file"):
        labels.read(tmp_path / "labels.txt")
