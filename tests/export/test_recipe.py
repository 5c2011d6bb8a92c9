from pathlib import Path

import pytest
import torch
from torch import nn

from export.recipe import Recipe, RecipeError, plan
from models import networks
from models.labels import LabelsError
from models.zoo import Shortcut


@pytest.fixture
def checkpoint_of_seven(tmp_path: Path) -> Path:
    path = tmp_path / "seven.pth"
    torch.save(networks.build("resnet18", 7).state_dict(), path)
    return path


def test_zoo_name_is_enough() -> None:
    recipe = plan("resnet50")
    assert (recipe.num_classes, recipe.top_k, recipe.architecture) == (1000, 100, "resnet50")
    assert recipe.published_accuracy == recipe.entry.accuracy


def test_unknown_network_is_answered_with_what_there_is() -> None:
    with pytest.raises(RecipeError, match=r"no network resnet51; there are resnet18, .*efficientnet_lite0"):
        plan("resnet51")


def test_network_without_published_weights_asks_for_some() -> None:
    with pytest.raises(RecipeError, match=r"--weights FILE.*--random-weights"):
        plan("cifar_resnet20")


def test_missing_checkpoint_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        plan("resnet18", checkpoint=tmp_path / "none.pth")


@pytest.mark.parametrize(("num_classes", "labelled"), [(7, False), (8, True)])
def test_labels_must_be_as_many_as_classes(num_classes: int, labelled: bool, labels_of_seven: Path) -> None:
    with pytest.raises(RecipeError, match=f"labels, not {num_classes}: .*--labels FILE"):
        plan("resnet18", random=True, num_classes=num_classes, labels_file=labels_of_seven if labelled else None)


def test_checkpoint_of_other_classes_asks_for_its_labels(checkpoint_of_seven: Path) -> None:
    with pytest.raises(RecipeError, match=r"has 7 classes, but there are 1000 labels.*--labels FILE"):
        plan("resnet18", checkpoint=checkpoint_of_seven).build(checkpoint_of_seven)


def test_labels_decide_the_classes_of_a_checkpoint(checkpoint_of_seven: Path, labels_of_seven: Path) -> None:
    recipe = plan("resnet18", checkpoint=checkpoint_of_seven, labels_file=labels_of_seven)
    assert recipe.obtain_weights(Path("nowhere")) == checkpoint_of_seven
    network = recipe.build(checkpoint_of_seven)
    head = network.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    assert (head.out_features, recipe.num_classes, recipe.top_k) == (7, 7, 7)
    assert not network.training
    assert recipe.published_accuracy is None


def test_random_parameters_are_named_so() -> None:
    recipe = plan("resnet50", random=True)
    assert recipe.obtain_weights(Path("nowhere")) is None
    assert recipe.describe_weights(None).random
    assert recipe.published_accuracy is None


def test_checkpoint_is_named_without_its_folder(checkpoint_of_seven: Path, labels_of_seven: Path) -> None:
    weights = plan("resnet18", checkpoint=checkpoint_of_seven, labels_file=labels_of_seven).describe_weights(
        checkpoint_of_seven
    )
    assert weights.source == "seven.pth"
    assert not weights.random


def test_network_without_shortcuts_has_none_to_choose() -> None:
    with pytest.raises(RecipeError, match="no shortcuts"):
        plan("efficientnet_lite0", shortcut="A")


def test_labels_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelsError):
        plan("resnet18", labels_file=tmp_path / "none.txt")


def test_fingerprint_tells_exports_apart(tmp_path: Path, labels_of_seven: Path, checkpoint_of_seven: Path) -> None:
    def cifar(shortcut: Shortcut) -> Recipe:
        return plan("cifar_resnet20", random=True, shortcut=shortcut)

    other_checkpoint = tmp_path / "other.pth"
    other_checkpoint.write_bytes(checkpoint_of_seven.read_bytes() + b"\0")
    recipes = [
        plan("resnet50"),
        plan("resnet50@v1"),
        plan("resnet50", random=True),
        plan("resnet18", checkpoint=checkpoint_of_seven),
        plan("resnet18", checkpoint=other_checkpoint),
        plan("resnet18", checkpoint=other_checkpoint, labels_file=labels_of_seven),
        cifar("A"),
        cifar("B"),
    ]
    assert len({recipe.fingerprint() for recipe in recipes}) == len(recipes)


def test_fingerprint_is_the_same_for_the_same_export(labels_of_seven: Path) -> None:
    same = plan("resnet18", random=True, labels_file=labels_of_seven)
    again = plan("resnet18", random=True, labels_file=labels_of_seven, num_classes=7)
    assert same.fingerprint() == again.fingerprint()
