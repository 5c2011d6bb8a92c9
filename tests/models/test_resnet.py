import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from models import networks
from models.architectures import ARCHITECTURES, TIMM, Shortcut, StrideIn
from models.resnet import BasicBlock, Bottleneck, ResNet, ZeroPadShortcut

# torchvision's documentation of each network's weights; entries of its state dict counted from the published files.
PUBLISHED = {
    "resnet18": (11_689_512, 122),
    "resnet34": (21_797_672, 218),
    "resnet50": (25_557_032, 320),
    "resnet101": (44_549_160, 626),
    "resnet152": (60_192_808, 932),
    "resnext50_32x4d": (25_028_904, 320),
    "resnext101_32x8d": (88_791_336, 626),
    "resnext101_64x4d": (83_455_272, 626),
    "wide_resnet50_2": (68_883_240, 320),
    "wide_resnet101_2": (126_886_696, 626),
}
# Table 6 of arXiv:1512.03385, in millions.
PUBLISHED_CIFAR_MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}
# pytorchcv 0.0.74, models/preresnet.py and preresnet_cifar.py (weight_count). Its first block has its own batch norm:
# on ImageNet after the stem's, so 64 scales and 64 shifts more than the paper's; on CIFAR instead of the stem's.
PUBLISHED_PRE_ACTIVATION = {
    "preresnet18": 11_687_848 - 128,
    "preresnet34": 21_796_008 - 128,
    "preresnet50": 25_549_480 - 128,
    "preresnet101": 44_541_608 - 128,
    "preresnet152": 60_185_256 - 128,
    "preresnet200": 64_666_280 - 128,
    "cifar_preresnet164": 1_703_258,
    "cifar_preresnet1001": 10_327_706,
}


def without_storage(architecture: str, num_classes: int = 1000, **changes: Any) -> nn.Module:
    """Build a network, or a variant of it, of which only shapes matter."""
    with torch.device("meta"):
        return networks.build(replace(ARCHITECTURES[architecture], **changes), num_classes)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_parameters_are_as_many_as_published(architecture: str) -> None:
    network = without_storage(architecture)
    assert (count(network), len(network.state_dict())) == PUBLISHED[architecture]


@pytest.mark.parametrize("depth", PUBLISHED_CIFAR_MILLIONS)
def test_cifar_parameters_are_as_many_as_published(depth: int) -> None:
    millions = count(without_storage(f"cifar_resnet{depth}", 10)) / 1e6
    published = PUBLISHED_CIFAR_MILLIONS[depth]
    assert round(millions, 2 if published < 1 else 1) == published


@pytest.mark.parametrize("architecture", PUBLISHED_PRE_ACTIVATION)
def test_pre_activation_parameters_are_as_many_as_published(architecture: str) -> None:
    classes = 10 if ARCHITECTURES[architecture].cifar else 1000
    assert count(without_storage(architecture, classes)) == PUBLISHED_PRE_ACTIVATION[architecture]


@pytest.mark.parametrize("depth", [18, 34])
def test_plain_network_has_the_parameters_of_its_residual_twin_but_for_projections(depth: int) -> None:
    # Section 3.3 of arXiv:1512.03385: with shortcuts A the two have the same parameters.
    plain, residual = without_storage(f"plain{depth}"), without_storage(f"resnet{depth}", shortcut="A")
    assert list(plain.state_dict()) == list(residual.state_dict())
    assert count(plain) == count(residual)


def test_pre_activation_110_has_the_published_parameters() -> None:
    # Table 5 of arXiv:1605.07146: 1.7 million; pytorchcv's has shortcuts B.
    assert round(count(without_storage("cifar_preresnet110", 10)) / 1e6, 1) == 1.7
    assert count(without_storage("cifar_preresnet110", 10, shortcut="B")) == 1_730_522


def test_depth_counts_the_layers_with_weights() -> None:
    misnamed = {"ecaresnetlight", "seresnextaa201d_32x8d", "resnetrs270", "resnetrs420"}  # by timm and the paper
    for name in ARCHITECTURES.keys() - misnamed:
        architecture = ARCHITECTURES[name]
        match = re.search(r"(?:net|next|plain|v2_|aa|blur|rs)(\d+)", name)
        layers = sum(architecture.depths) * (3 if architecture.block == "bottleneck" else 2) + 2
        assert match
        assert layers == int(match[1])


def test_parameters_have_torchvision_names_and_shapes() -> None:
    shapes = {name: list(tensor.shape) for name, tensor in without_storage("resnext50_32x4d").state_dict().items()}
    # Read from torchvision's resnext50_32x4d-7cdf4587.pth: the stem, a first and a later block, the head.
    assert shapes["conv1.weight"] == [64, 3, 7, 7]
    assert shapes["bn1.num_batches_tracked"] == []
    assert shapes["layer1.0.conv1.weight"] == [128, 64, 1, 1]
    assert shapes["layer1.0.conv2.weight"] == [128, 4, 3, 3]
    assert shapes["layer1.0.conv3.weight"] == [256, 128, 1, 1]
    assert shapes["layer1.0.downsample.0.weight"] == [256, 64, 1, 1]
    assert shapes["layer1.0.downsample.1.running_var"] == [256]
    assert "layer1.1.downsample.0.weight" not in shapes
    assert shapes["layer4.2.bn3.bias"] == [2048]
    assert shapes["fc.weight"] == [1000, 2048]
    assert list(shapes)[-2:] == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("architecture", "stride_in", "strides"),
    [
        ("resnet50", None, (1, 2)),
        ("resnet50", "1x1", (2, 1)),
        ("preresnet50", None, (1, 2)),
        ("cifar_preresnet164", None, (2, 1)),
        ("cifar_preresnet164", "3x3", (1, 2)),
    ],
)
def test_bottleneck_halves_the_resolution_where_it_should(
    architecture: str, stride_in: StrideIn | None, strides: tuple[int, int]
) -> None:
    wanted = stride_in or ARCHITECTURES[architecture].stride_in
    block = without_storage(architecture, stride_in=wanted).get_submodule("layer2.0")
    assert isinstance(block, Bottleneck)
    assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


def test_stride_in_the_1x1_costs_what_the_paper_says() -> None:
    # Table 1 of arXiv:1512.03385: 3.8e9 multiply-adds; with the stride in the 3x3 torchvision gives 4.09e9.
    def multiply_adds(stride_in: StrideIn) -> int:
        with FlopCounterMode(display=False) as counter:
            without_storage("resnet50", stride_in=stride_in)(torch.empty(1, 3, 224, 224, device="meta"))
        return int(counter.get_total_flops()) // 2

    assert multiply_adds("1x1") == pytest.approx(3.8e9, rel=0.02)
    assert multiply_adds("3x3") == pytest.approx(4.09e9, rel=0.002)


def test_pre_activation_block_adds_its_untouched_input() -> None:
    network = networks.build("cifar_preresnet110", 10)
    block = network.get_submodule("layer1.1")
    assert isinstance(block, BasicBlock)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("architecture", ["preresnet18", "preresnet50", "cifar_preresnet110", "cifar_preresnet164"])
def test_pre_activation_network_is_that_of_the_paper(architecture: str) -> None:
    network = networks.build(architecture, 10)
    for name, buffer in network.named_buffers():  # statistics as training leaves them, so that their place matters
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
    side = 16 if ARCHITECTURES[architecture].cifar else 64
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(images), paper_logits(network, architecture, images))


def paper_logits(network: nn.Module, architecture: str, x: Tensor) -> Tensor:
    """The authors' network (figure 4e and appendix of arXiv:1603.05027) step by step, with the parameters of ours."""
    get = network.get_submodule

    def norm_relu(name: str, x: Tensor) -> Tensor:
        norm = get(name)
        assert isinstance(norm, nn.BatchNorm2d)
        return functional.relu(
            functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
        )

    known = ARCHITECTURES[architecture]
    x = norm_relu("bn1", get("conv1")(x))
    if not known.cifar:
        x = functional.max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(known.depths, 1):
        for index in range(depth):
            block = f"layer{stage}.{index}"
            activated = x if (stage, index) == (1, 0) else norm_relu(f"{block}.bn1", x)
            residual = get(f"{block}.conv1")(activated)
            residual = get(f"{block}.conv2")(norm_relu(f"{block}.bn2", residual))
            if known.block == "bottleneck":
                residual = get(f"{block}.conv3")(norm_relu(f"{block}.bn3", residual))
            downsample = getattr(get(block), "downsample", None)
            x = residual + (x if downsample is None else downsample(activated))
    logits: Tensor = get("fc")(norm_relu("last_bn", x).mean((2, 3)))
    return logits


def test_plain_network_is_a_chain() -> None:
    network = networks.build("plain18", 10)
    nn.init.zeros_(network.get_parameter("layer1.0.conv2.weight"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = network(images)
    assert torch.equal(first, second)  # no shortcut bypasses a layer whose output is zero


def test_shortcut_a_subsamples_and_pads_channels_on_both_sides() -> None:
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    y = ZeroPadShortcut(2, 4, stride=2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, (0, 3)].any()


@pytest.mark.parametrize(("shortcut", "projections"), [("A", 0), ("B", 2), ("C", 9)])
def test_shortcut_decides_how_many_blocks_project(shortcut: Shortcut, projections: int) -> None:
    names = without_storage("cifar_resnet20", 10, shortcut=shortcut).state_dict()
    assert sum(name.endswith("downsample.0.weight") for name in names) == projections


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize(
    "architecture", ["resnet18", "resnet50", "cifar_resnet20", "preresnet18", "preresnet50", "cifar_preresnet110"]
)
def test_every_shortcut_runs_in_every_family(architecture: str, shortcut: Shortcut) -> None:
    images = torch.empty(2, 3, 64, 64, device="meta")
    assert without_storage(architecture, 7, shortcut=shortcut)(images).shape == (2, 7)


DEEP = ("cifar_resnet1202", "cifar_preresnet1001", "preresnet200", "cifar_preresnet110", "plain34")


# test_names has timm's; deep ones are below
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in TIMM and name not in DEEP])
def test_every_network_maps_images_to_logits(architecture: str) -> None:
    side = 32 if ARCHITECTURES[architecture].cifar else 224
    images = torch.empty(3, 3, side, side, device="meta")
    assert without_storage(architecture, 7)(images).shape == (3, 7)


@pytest.mark.parametrize("architecture", DEEP)
def test_untrained_deep_network_neither_explodes_nor_goes_silent(architecture: str) -> None:
    network = networks.build(architecture, 10)
    nn.init.zeros_(network.get_parameter("fc.bias"))
    side = 16 if ARCHITECTURES[architecture].cifar else 96
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 10)
    assert 1e-3 < logits.abs().max() < 100
    assert not torch.allclose(logits[0], logits[1], rtol=1e-3)


def test_seed_alone_decides_untrained_parameters() -> None:
    before = torch.get_rng_state()
    first, second = networks.build("cifar_resnet20", 10), networks.build("cifar_resnet20", 10)
    other = networks.build("cifar_resnet20", 10, seed=1)
    assert isinstance(first, ResNet)
    assert torch.equal(first.get_parameter("fc.weight"), second.get_parameter("fc.weight"))
    assert not torch.equal(first.get_parameter("fc.weight"), other.get_parameter("fc.weight"))
    assert torch.equal(torch.get_rng_state(), before)


def test_efficientnet_lite0_has_its_published_parameters() -> None:
    # 4.7 million in the TensorFlow repository's table of the Lite models.
    assert count(networks.build("efficientnet_lite0", 1000)) == 4_652_008
