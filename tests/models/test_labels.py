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


def test_data_sets_are_known_by_their_names() -> None:
    assert labels.read(Path("imagenet")) == labels.imagenet()
    assert labels.read(Path("cifar10")) == labels.cifar10()


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


def test_names_that_only_end_in_numbers_keep_them(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("kind 0\nkind 1\n")
    assert names(tmp_path / "labels.txt") == ["kind 0", "kind 1"]


def test_json_file_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(["cat", "dog"]))
    assert names(tmp_path / "labels.json") == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "cat\r\ndog\r\nred fox\r\n"),
        ("labels.txt", "cat\ndog\nred fox\n\n  \n"),
        ("labels.txt", "\ufeffcat\ndog\nred fox"),
        ("labels.txt", "cat\ndog\nred fox\n".encode("utf-16")),
        ("labels.txt", "# my classes\ncat\ndog\nred fox\n"),
        ("labels.txt", '["cat", "dog", "red fox"]'),
        ("labels.txt", "{0: 'cat',\n 1: 'dog',\n 2: 'red fox'}"),
        ("labels.txt", "0\tcat\n2\tred fox\n1\tdog\n"),
        ("labels.txt", "0: cat\n1: dog\n2: red fox\n"),
        ("labels.json", '\ufeff["cat", "dog", "red fox"]'),
        ("labels.json", '[["a", "cat"], ["b", "dog"], ["c", "red fox"]]'),
        ("id2label.json", '{"0": "cat", "2": "red fox", "1": "dog"}'),
        ("class_to_idx.json", '{"red fox": 2, "cat": 0, "dog": 1}'),
        ("config.json", '{"architectures": ["Net"], "id2label": {"0": "cat", "1": "dog", "2": "red fox"}}'),
        ("labels.csv", "0,cat\n1,dog\n2,red fox\n"),
        ("labels.csv", "id,name\n0,cat\n2,red fox\n1,dog\n"),
        ("labels.csv", "label\ncat\ndog\nred fox\n"),
        ("labels.csv", 'name;count;class_id\ncat;many;0\ndog;few;1\n"red fox";few;2\n'),
        ("labels.tsv", "cat\ndog\nred fox\n"),
        ("labels.txt", "cat 0\ndog 1\nred fox 2\n"),
        ("labels.txt", "cat\ndog\nred\u2028fox\n"),
        ("labels.csv", 'cat\ndog\n"red\nfox"\n'),
        ("labels.csv", "ClassId,SignName\n0,cat\n1,dog\n2,red fox\n"),
        ("labels.json", '["cat", "dog", "red\\nfox"]'),
    ],
)
def test_names_are_read_in_every_form_that_people_have(tmp_path: Path, name: str, content: str | bytes) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert names(tmp_path / name) == ["cat", "dog", "red fox"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("synset_words.txt", "n01440764 tench, Tinca tinca\nn01484850 great white shark, white shark\n"),
        ("index.json", '{"0": ["n01440764", "tench"], "1": ["n01484850", "great_white_shark"]}'),
        ("synsets.txt", "n01440764\nn01484850\n"),
        ("labels.csv", "wnid,name\nn01440764,tench\nn01484850,great_white_shark\n"),
    ],
)
def test_wordnet_ids_are_kept(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert [label.wordnet_id for label in labels.read(tmp_path / name)] == ["n01440764", "n01484850"]
    assert names(tmp_path / name) == ["tench", "great white shark"]


def test_folder_of_a_training_set_names_its_classes(tmp_path: Path) -> None:
    for name in ("dog", "cat", "Zebra"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.txt").touch()
    assert names(tmp_path) == ["Zebra", "cat", "dog"]


def test_imagenet_s_own_repetitions_are_none(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(label.label for label in labels.imagenet()))
    assert names(tmp_path / "labels.txt").count("crane") == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", b"cat\n\ndog\n", "line 2 is empty"),
        ("labels.txt", b"cat\ncaf\xe9\n", "line 2 is not UTF-8 text"),
        ("labels.txt", b"", "it names no class"),
        ("labels.txt", b"cat\ndog\ncat\n", "line 3 repeats line 1: cat"),
        ("labels.json", b'{"cat": {"dog": 1}}', "neither of names and indices"),
        ("labels.json", b'["cat", 1]', "entry 2 has 1 where a name is wanted"),
        ("labels.json", b'["cat", " "]', "entry 2 has ' ' where a name is wanted"),
        ("labels.json", b'["cat"', "it is no JSON"),
        ("labels.json", b'{"cat": 1, "dog": 2}', "numbers its classes from 1"),
        ("labels.json", b'{"cat": 0, "dog": 0}', "the index 0 is there twice"),
        ("labels.json", b'{"0": "cat", "2": "dog"}', "the index 2 is there and not 1"),
        ("labels.txt", b"1 cat\n2 dog\n", "numbers its classes from 1"),
        ("labels.txt", "cat\ndog\n".encode("utf-16-le"), r"line 1 has the character U\+0000"),
        ("labels.json", b'["cat", "\\ud800"]', r"entry 2 has the character U\+D800"),
        ("labels.json", b"[" * 100_000, "it is nested too deeply"),
        ("labels.yaml", b"- cat\n- dog\n", "it is YAML"),
        ("labels.csv", b'0,"cat\n1,dog\n', "it is no table with columns separated by ','"),
        ("labels.csv", b"0,cat\n1,dog, hot\n", "line 2 has 3 columns, line 1 has 2"),
        ("labels.csv", b"id,name\n0,cat\n1,\n", "line 3 has '' where a name is wanted"),
    ],
)
def test_file_of_something_else_is_refused_by_name_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelsError, match=f"{name}: .*{message}") as caught:
        labels.read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="No such file"):
        labels.read(tmp_path / "labels.txt")


def test_label_files_that_people_really_have(shared: Path) -> None:
    folder = shared / "cases" / "export" / "labels"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    refused = set()
    for path in folder.iterdir():
        try:
            found = names(path)
        except LabelsError:
            refused.add(path.name)
        else:
            expected = ["owl", "bee", "ant", "cow", "hen", "pig", "rat"][: 6 if path.stem == "nine" else None]
            assert found[3:] == expected, path
    assert refused == {"blank_mid.txt", "broken.json", "dups.txt", "empty.txt", "ints.json", "latin1.txt"}
