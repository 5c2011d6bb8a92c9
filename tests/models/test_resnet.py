import pytest
import torch
from torch import nn

from models import networks
from models.resnet import ARCHITECTURES, Bottleneck, ResNet, ZeroPadShortcut
from models.zoo import Shortcut

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


def without_storage(architecture: str, num_classes: int = 1000, shortcut: Shortcut | None = None) -> nn.Module:
    with torch.device("meta"):
        return networks.build(architecture, num_classes, shortcut)


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


def test_depth_counts_the_layers_with_weights() -> None:
    for name, architecture in ARCHITECTURES.items():
        depth = "".join(name.split("_")[1 if name.startswith(("cifar", "wide")) else 0].strip("resnxt"))
        layers = sum(architecture.depths) * (3 if architecture.block is Bottleneck else 2) + 2
        assert layers == int(depth)


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


def test_bottleneck_halves_the_resolution_in_its_3x3() -> None:
    block = without_storage("resnet50").get_submodule("layer2.0")
    assert isinstance(block, Bottleneck)
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_shortcut_a_subsamples_and_pads_channels_on_both_sides() -> None:
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    y = ZeroPadShortcut(2, 4, stride=2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, (0, 3)].any()


@pytest.mark.parametrize(("shortcut", "projections"), [("A", 0), ("B", 2), ("C", 9)])
def test_shortcut_decides_how_many_blocks_project(shortcut: Shortcut, projections: int) -> None:
    names = without_storage("cifar_resnet20", 10, shortcut).state_dict()
    assert sum(name.endswith("downsample.0.weight") for name in names) == projections


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "cifar_resnet20"])
def test_every_shortcut_runs_in_every_family(architecture: str, shortcut: Shortcut) -> None:
    images = torch.empty(2, 3, 64, 64, device="meta")
    assert without_storage(architecture, 7, shortcut)(images).shape == (2, 7)


def test_untrained_network_of_1202_layers_stays_finite() -> None:
    network = networks.build("cifar_resnet1202", 10)
    with torch.inference_mode():
        logits = network(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert logits.isfinite().all()
    assert logits.abs().max() < 100


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
