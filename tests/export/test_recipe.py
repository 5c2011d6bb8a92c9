from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from export.options import Stated
from export.recipe import Recipe, RecipeError, plan
from models import networks, zoo
from models.architectures import Shortcut, StrideIn
from models.hub import SourceError
from models.labels import LabelsError
from models.resnet import Bottleneck


@pytest.fixture
def checkpoint_of_seven(tmp_path: Path) -> Path:
    path = tmp_path / "seven.pth"
    torch.save(networks.build("resnet18", 7).state_dict(), path)
    return path


def test_zoo_name_is_enough() -> None:
    recipe = plan("resnet50")
    assert (recipe.num_classes, recipe.top_k, recipe.architecture) == (1000, 100, "resnet50")
    assert recipe.published_accuracy == zoo.NETWORKS["resnet50"].accuracy


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("resnet51", r"there is no network resnet51; did you mean resnet50 or .*\?"),
        ("ResNet50", r"did you mean resnet50\b"),
        ("zzz", r"there is no network zzz; there are resnet18, .*efficientnet_lite0"),
    ],
)
def test_unknown_network_is_answered_with_what_there_is(name: str, answer: str) -> None:
    with pytest.raises(RecipeError, match=answer):
        plan(name)


def test_file_in_the_place_of_a_network_is_said_to_be_one(checkpoint_of_seven: Path) -> None:
    with pytest.raises(SourceError, match=r"is a file: name its network, .*--weights .*seven\.pth"):
        plan(str(checkpoint_of_seven))


def test_network_without_published_weights_asks_for_some() -> None:
    with pytest.raises(RecipeError, match=r"--weights FILE.*--random-weights"):
        plan("cifar_resnet20")


def test_missing_checkpoint_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        plan("resnet18", checkpoint=tmp_path / "none.pth")


def test_labels_must_be_as_many_as_classes(labels_of_seven: Path) -> None:
    with pytest.raises(RecipeError, match=r"seven\.txt has 7 labels, not 8"):
        plan("resnet18", random=True, num_classes=8, labels_file=labels_of_seven)


@pytest.mark.parametrize("num_classes", [0, -1])
def test_there_is_at_least_one_class(num_classes: int) -> None:
    with pytest.raises(RecipeError, match=r"--num-classes is .*: give 1 or more"):
        plan("resnet18", random=True, num_classes=num_classes)


def test_classes_without_labels_are_numbered(checkpoint_of_seven: Path) -> None:
    recipe = plan("resnet18", checkpoint=checkpoint_of_seven, num_classes=7)
    assert [label.label for label in recipe.labels][::6] == ["class 0", "class 6"]
    recipe.build(checkpoint_of_seven)


def test_number_of_classes_that_is_the_zoos_keeps_its_labels() -> None:
    assert plan("resnet18", random=True, num_classes=1000).labels == plan("resnet18").labels


def test_checkpoint_of_other_classes_asks_for_its_labels(checkpoint_of_seven: Path) -> None:
    with pytest.raises(RecipeError, match=r"has 7 classes, but .* 1000 labels.*--labels FILE.*--num-classes 7"):
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


@pytest.mark.parametrize("name", ["efficientnet_lite0", "plain18"])
def test_network_without_shortcuts_has_none_to_choose(name: str) -> None:
    with pytest.raises(RecipeError, match="no shortcuts"):
        plan(name, random=True, shortcut="A")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "plain18", "cifar_preresnet110"])
def test_network_without_bottlenecks_has_no_stride_to_choose(name: str) -> None:
    with pytest.raises(RecipeError, match="no bottlenecks"):
        plan(name, random=True, stride_in="1x1")


def test_architecture_says_what_is_not_usual() -> None:
    assert plan("resnet50", random=True, stride_in="1x1").architecture == "resnet50 with stride in the 1x1"
    both = plan("resnet50", random=True, shortcut="C", stride_in="1x1")
    assert both.architecture == "resnet50 with shortcuts C and stride in the 1x1"
    block = both.build(None).get_submodule("layer2.0")
    assert isinstance(block, Bottleneck)
    assert block.conv1.stride == (2, 2)


def test_network_that_takes_means_of_2x2_pixels_needs_a_crop_that_it_can_halve() -> None:
    assert plan("resnetaa50", random=True, stated=Stated(crop=(224, 320), resize=320)).preprocessing.crop == (224, 320)
    with pytest.raises(RecipeError, match="multiples of 32"):
        plan("resnetaa50", random=True, stated=Stated(crop=(288, 240), resize=320))
    with pytest.raises(RecipeError, match="no bottlenecks"):  # whose stride could move
        plan("resnetaa50", random=True, stride_in="1x1")


def test_file_that_fits_other_networks_too_is_in_doubt(checkpoint_of_seven: Path, labels_of_seven: Path) -> None:
    recipe = plan("resnet18", checkpoint=checkpoint_of_seven, labels_file=labels_of_seven)
    network = recipe.build(checkpoint_of_seven)
    assert "seven.pth fits resnetblur18 as well as resnet18" in recipe.doubt(network)
    untrained = plan("resnet18", random=True)
    assert not untrained.doubt(network)


def test_averages_are_taken_where_they_are_asked_for(tmp_path: Path) -> None:
    trained, averages = (networks.build("cifar_resnet20", 10, seed=seed).state_dict() for seed in (1, 2))
    path = tmp_path / "mine.pth"
    torch.save({"model": trained, "model_ema": {f"module.{name}": averages[name] for name in averages}}, path)
    for averaged, expected in ((False, trained), (True, averages)):
        recipe = plan("cifar_resnet20", checkpoint=path, averaged=averaged)
        assert torch.equal(recipe.build(path).get_parameter("fc.weight"), expected["fc.weight"])
        assert recipe.describe_weights(path).source == "mine.pth" + (", moving averages" if averaged else "")


def test_network_of_several_is_taken_that_is_chosen(tmp_path: Path) -> None:
    student, teacher = (networks.build("cifar_resnet20", 10, seed=seed).state_dict() for seed in (1, 2))
    both = {f"student.{name}": student[name] for name in student} | {
        f"teacher.{name}": teacher[name] for name in teacher
    }
    torch.save({"nets": both}, tmp_path / "mine.pth")
    recipe = plan("cifar_resnet20", checkpoint=tmp_path / "mine.pth", key="nets", prefix="teacher.")
    network = recipe.build(tmp_path / "mine.pth")
    assert torch.equal(network.get_parameter("fc.weight"), teacher["fc.weight"])
    assert recipe.describe_weights(tmp_path / "mine.pth").source == "mine.pth, key nets, prefix teacher."


@pytest.mark.parametrize("chosen", [{"averaged": True}, {"key": "a"}, {"prefix": "a"}, {"head": "a"}])
def test_of_the_zoos_own_weights_nothing_is_chosen(chosen: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"--ema.*--weights FILE"):
        plan("resnet18", **chosen)


def test_file_that_is_no_checkpoint_is_told_before_torch_is_needed(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_text("<!DOCTYPE html>")
    with pytest.raises(RecipeError, match=r"mine\.pth is a web page"):
        plan("resnet18", checkpoint=tmp_path / "mine.pth")
    with pytest.raises(RecipeError, match="is a folder"):
        plan("resnet18", checkpoint=tmp_path)
    with pytest.raises(RecipeError, match="there is no such file"):
        plan("resnet18", checkpoint=tmp_path / "none.pth")


def test_as_many_classes_as_imagenet_has_are_not_imagenets(checkpoint_of_seven: Path) -> None:
    own = plan("resnet18", checkpoint=checkpoint_of_seven, num_classes=1000)
    assert own.labels[0].label == "class 0"
    assert plan("resnet18", num_classes=1000).labels[0].label == "tench"


def test_labels_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelsError):
        plan("resnet18", labels_file=tmp_path / "none.txt")


def test_weights_of_ones_own_are_not_taken_for_torchvisions_second(checkpoint_of_seven: Path) -> None:
    """torchvision tuned its resize of 232 for its second weights; other people's networks see 256."""
    assert plan("resnet50").preprocessing.resize == 232
    own = plan("resnet50", checkpoint=checkpoint_of_seven).preprocessing
    assert own == plan("resnet50@v1").preprocessing
    assert own.resize == 256


def test_what_is_stated_of_the_preprocessing_is_exported(checkpoint_of_seven: Path) -> None:
    stated = Stated(crop=(96, 64), crop_mode="squash", activation="sigmoid")
    recipe = plan("resnet18", checkpoint=checkpoint_of_seven, num_classes=7, stated=stated)
    assert (recipe.preprocessing.crop, recipe.preprocessing.resize, recipe.activation) == ((96, 64), 96, "sigmoid")


def test_one_class_needs_a_probability_of_its_own() -> None:
    with pytest.raises(RecipeError, match="--activation sigmoid"):
        plan("resnet18", random=True, num_classes=1)
    assert plan("resnet18", random=True, num_classes=1, stated=Stated(activation="sigmoid")).num_classes == 1


def test_fingerprint_tells_exports_apart(tmp_path: Path, labels_of_seven: Path, checkpoint_of_seven: Path) -> None:
    def changed(shortcut: Shortcut | None = None, stride_in: StrideIn | None = None) -> Recipe:
        return plan("resnet50", random=True, shortcut=shortcut, stride_in=stride_in)

    other_checkpoint = tmp_path / "other.pth"
    other_checkpoint.write_bytes(checkpoint_of_seven.read_bytes() + b"\0")
    recipes = [
        plan("resnet50"),
        plan("resnet50@v1"),
        plan("resnet50", random=True),
        plan("resnet18", checkpoint=checkpoint_of_seven),
        plan("resnet18", checkpoint=other_checkpoint),
        plan("resnet18", checkpoint=other_checkpoint, labels_file=labels_of_seven),
        plan("resnet18", checkpoint=other_checkpoint, averaged=True),
        plan("resnet18", checkpoint=other_checkpoint, key="model"),
        plan("resnet18", checkpoint=other_checkpoint, prefix="model"),
        plan("resnet18", checkpoint=other_checkpoint, head="model"),
        plan("resnet18", random=True, num_classes=7),
        changed("A"),
        changed("B"),
        changed(stride_in="1x1"),
        changed("A", "1x1"),
        plan("resnet50", random=True, stated=Stated(resize=300)),
        plan("resnet50", random=True, stated=Stated(activation="sigmoid")),
    ]
    assert len({recipe.fingerprint() for recipe in recipes}) == len(recipes)


def test_fingerprint_is_the_same_for_the_same_export(labels_of_seven: Path) -> None:
    same = plan("resnet18", random=True, labels_file=labels_of_seven)
    again = plan("resnet18", random=True, labels_file=labels_of_seven, num_classes=7)
    assert same.fingerprint() == again.fingerprint()
