"""With other libraries' parameters, under their names, our networks compute the same as theirs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import checkpoint, names, networks
from models.architectures import ARCHITECTURES, TIMM
from models.resnet import ResNet
from tests.models import libraries

NUM_CLASSES = 10


class Logits(nn.Module):
    """Takes the logits out of the record that a network of transformers returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).logits
        return logits


class WithHead(nn.Module):
    """A backbone of MMPretrain beside its head."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.ModuleDict({"fc": nn.Linear(channels, NUM_CLASSES)})

    def forward(self, x: Tensor) -> Tensor:
        (features,) = self.backbone(x)
        logits: Tensor = self.head["fc"](features.mean((2, 3)))
        return logits


def images(*, side: int = 80) -> Tensor:
    """Two clearly different images. 80 pixels become 5 before the last stage, which shows how borders are treated."""
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return pixels * torch.tensor([1.0, 4.0]).view(2, 1, 1, 1)


def assert_same_logits(ours: nn.Module, theirs: nn.Module, inputs: Tensor, tolerance: float = 1e-5) -> None:
    with torch.inference_mode():
        expected, logits = theirs(inputs), ours.eval()(inputs)
    scale = expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 0.001 * scale > 0
    assert (logits - expected).abs().max() < tolerance * scale


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


@pytest.mark.parametrize(
    "name",
    # Depths that torchvision does not have.
    [
        "resnet10t",
        "resnet14t",
        "resnet26",
        "seresnet269d",
        "seresnextaa201d_32x8d",
        "ecaresnetlight",
        "resnetrs270",
        "resnetrs350",
        "resnetrs420",
        "resnetv2_152x4_bit",
    ],
)
def test_network_is_as_deep_and_wide_as_timms(name: str) -> None:
    with torch.device("meta"), libraries.without_initialisation():
        theirs = libraries.timm().create_model(name)
        ours = networks.build(name, 1000)
    assert shapes(names.to_ours(theirs.state_dict())) == shapes(ours.state_dict())


def test_every_variant_has_the_layers_that_timm_gives_it() -> None:
    kinds = {"mean": "AvgPool2d", "blur": "BlurPool2d", None: "Identity"}
    for name in (name for name in TIMM if not name.startswith("resnetv2")):
        shallow = replace(TIMM[name], depths=(1, 1, 1, 1))
        with torch.device("meta"), libraries.without_initialisation():
            theirs = libraries.timm().create_model(name, layers=shallow.depths)
            ours = ResNet(shallow, 1000)
        assert shapes(theirs.state_dict()) == shapes(ours.state_dict()), name
        assert type(theirs.layer2[0].aa).__name__ == kinds[shallow.anti_aliasing], name


@pytest.mark.parametrize(
    "name",
    # Every variation, in both kinds of block if it differs between them.
    [
        "resnet10t",
        "resnet50s",
        "resnet50_gn",
        "seresnext26d_32x4d",
        "ecaresnet26t",
        "resnetaa34d",
        "resnetaa50",
        "resnetblur18",
        "resnetblur50d",
        "resnetrs50",
        "resnetv2_18d",
        "resnetv2_50",
        "resnetv2_50d_gn",
    ],
)
def test_one_block_of_each_stage_computes_what_timms_do(name: str) -> None:
    shallow = replace(TIMM[name], depths=(1, 1, 1, 1))
    with libraries.without_initialisation():
        theirs = libraries.timm().create_model(name, layers=shallow.depths, num_classes=NUM_CLASSES)
        ours = ResNet(shallow, NUM_CLASSES)
    in_file = dict(sorted(libraries.trained(theirs).items()))  # in the order of safetensors
    state = names.to_ours(in_file)
    assert checkpoint.num_classes(state) == NUM_CLASSES
    ours.load_state_dict(state)
    # Of five pixels, a mean of 2x2 leaves one out, but timm's shortcut does not.
    assert_same_logits(ours, theirs, images(side=64) if shallow.anti_aliasing == "mean" else images())


def test_bit_computes_what_timms_does() -> None:
    name = "resnetv2_50x1_bit"
    with libraries.without_initialisation():
        theirs = libraries.timm().create_model(name, num_classes=NUM_CLASSES)
        ours = networks.build(name, NUM_CLASSES)
    ours.load_state_dict(names.to_ours(libraries.trained(theirs)))
    # Its group norms magnify rounding: timm's own logits are as far from those in float64.
    assert_same_logits(ours, theirs, images(), tolerance=5e-5)


def test_filters_that_are_standardised_stay_as_they_are() -> None:
    shallow = replace(ARCHITECTURES["resnetv2_50x1_bit"], depths=(1,))
    first, second = ResNet(shallow, NUM_CLASSES), ResNet(shallow, NUM_CLASSES)
    second.load_state_dict(first.state_dict())
    for name, tensor in second.state_dict().items():
        torch.testing.assert_close(tensor, first.get_parameter(name), rtol=0, atol=1e-4)
    assert second.get_parameter("conv1.weight")[0].std(correction=0).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("resnet18", {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}),
        ("resnet26", {"depths": [2, 2, 2, 2], "downsample_in_bottleneck": True}),
    ],
)
def test_transformers_network_computes_what_ours_does(name: str, how: dict[str, Any]) -> None:
    transformers = libraries.transformers()
    with libraries.without_initialisation():
        theirs = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=NUM_CLASSES, **how))
    state = names.to_ours(libraries.trained(theirs))
    assert name in names.recognise(state)
    first = bool(how.get("downsample_in_bottleneck"))
    ours = networks.build(replace(ARCHITECTURES[name], stride_in="1x1" if first else "3x3"), NUM_CLASSES)
    ours.load_state_dict(state)
    assert_same_logits(ours, Logits(theirs), images())


@pytest.mark.parametrize(
    ("name", "backbone", "how"),
    [
        ("resnet34", "ResNet", {"depth": 34}),
        ("resnet50d", "ResNetV1d", {"depth": 50}),
        ("seresnet50", "SEResNet", {"depth": 50}),
    ],
)
def test_mmpretrain_network_computes_what_ours_does(name: str, backbone: str, how: dict[str, Any]) -> None:
    module = libraries.mmpretrain("seresnet" if backbone == "SEResNet" else "resnet")
    with libraries.without_initialisation():
        theirs = WithHead(getattr(module, backbone)(**how), 512 if name == "resnet34" else 2048)
    state = {key.removeprefix("backbone."): tensor for key, tensor in names.to_ours(libraries.trained(theirs)).items()}
    assert name in names.recognise(state)
    ours = networks.build(name, NUM_CLASSES)
    ours.load_state_dict(state)
    assert_same_logits(ours, theirs, images())


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("resnet50", ("resnet50", "resnetaa50", "resnetblur50")),
        ("resnet101d", ("resnet101d", "resnetaa101d", "resnetblur101d")),
        ("seresnext101d_32x8d", ("seresnext101d_32x8d", "seresnextaa101d_32x8d")),
        ("resnet50c", ("resnet50c",)),
        ("resnetv2_50x1_bit", ("resnetv2_50x1_bit",)),
        ("preresnet18", ("preresnet18",)),
        ("cifar_preresnet110", ("cifar_preresnet110",)),
    ],
)
def test_networks_whose_files_cannot_be_told_apart_are_all_named(name: str, alike: tuple[str, ...]) -> None:
    with torch.device("meta"):
        state = networks.build(name, NUM_CLASSES).state_dict()
    assert names.recognise(state) == alike


def test_network_that_sees_grey_is_the_same() -> None:
    network = networks.build("resnet10t", NUM_CLASSES)
    networks.see_grey(network)
    assert names.recognise(network.state_dict()) == ("resnet10t",)


def test_what_is_no_network_of_ours_is_none() -> None:
    assert names.recognise({}) == ()
    assert names.recognise({"fc.weight": torch.ones(1, 1)}) == ()
    every = networks.build(replace(ARCHITECTURES["cifar_resnet20"], shortcut="C"), NUM_CLASSES)
    assert names.recognise(every.state_dict()) == ()
