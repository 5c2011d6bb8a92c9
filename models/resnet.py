"""Residual networks: one definition for ResNet, ResNeXt, Wide ResNet and the CIFAR family.

He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385); Xie et al., "Aggregated Residual
Transformations for Deep Neural Networks" (arXiv:1611.05431); Zagoruyko and Komodakis, "Wide Residual Networks"
(arXiv:1605.07146). Parameter names and shapes are those of torchvision, so that its published files load unchanged.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from models.zoo import Shortcut


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one residual network from another."""

    depths: tuple[int, ...]
    """Residual blocks in each stage; the first stage keeps the resolution, each later one halves it."""
    block: "type[BasicBlock | Bottleneck]"
    width: int = 64
    """Channels of the stem and width of the first stage; doubles with each stage."""
    groups: int = 1
    width_per_group: int = 64
    cifar: bool = False
    """For 32x32 images: the stem is one 3x3 convolution that keeps the resolution."""
    shortcut: Shortcut = "B"


class ZeroPadShortcut(nn.Module):
    """Shortcut A: every `stride`-th pixel, and zeros for the channels the input lacks, half of them on each side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, outputs, H / stride, W / stride]."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


def _shortcut(kind: Shortcut, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if kind != "C" and stride == 1 and inputs == outputs:
        return None
    if kind == "A":
        return ZeroPadShortcut(inputs, outputs, stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _last_norm(architecture: Architecture, channels: int) -> nn.BatchNorm2d:
    """Build the batch norm that ends a residual branch, scaled by 1 / sqrt(number of blocks) until weights are loaded.

    With unit scales an untrained network's activations double in variance with each block: infinite after 600.
    """
    norm = nn.BatchNorm2d(channels)
    nn.init.constant_(norm.weight, sum(architecture.depths) ** -0.5)
    return norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, architecture: Architecture, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = _last_norm(architecture, width)
        self.downsample = _shortcut(architecture.shortcut, inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, width, H / stride, W / stride]."""
        residual = functional.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return functional.relu(residual + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the stride is in the 3x3, as in torchvision."""

    expansion = 4

    def __init__(self, architecture: Architecture, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        groups = architecture.groups
        inner = width * architecture.width_per_group // 64 * groups
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = _last_norm(architecture, outputs)
        self.downsample = _shortcut(architecture.shortcut, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, 4 * width, H / stride, W / stride]."""
        residual = functional.relu(self.bn1(self.conv1(x)))
        residual = functional.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return functional.relu(residual + (x if self.downsample is None else self.downsample(x)))


class GlobalAveragePool(nn.Module):
    """Mean over the image. `nn.AdaptiveAvgPool2d(1)` is the same, but exports as nine operators instead of one."""

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, C, H, W] to float32[N, C]."""
        return x.mean((2, 3))


class ResNet(nn.Sequential):
    """From normalised images float32[N, 3, H, W] to logits float32[N, num_classes]."""

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        width = channels = architecture.width
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if architecture.cifar:
            layers["conv1"] = nn.Conv2d(3, width, 3, padding=1, bias=False)
        else:
            layers["conv1"] = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        layers["bn1"] = nn.BatchNorm2d(width)
        layers["relu"] = nn.ReLU()
        if not architecture.cifar:
            layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
        for stage, depth in enumerate(architecture.depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(architecture.block(architecture, channels, width << stage, stride))
                channels = (width << stage) * architecture.block.expansion
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        layers["avgpool"] = GlobalAveragePool()
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


ARCHITECTURES = {
    "resnet18": Architecture((2, 2, 2, 2), BasicBlock),
    "resnet34": Architecture((3, 4, 6, 3), BasicBlock),
    "resnet50": Architecture((3, 4, 6, 3), Bottleneck),
    "resnet101": Architecture((3, 4, 23, 3), Bottleneck),
    "resnet152": Architecture((3, 8, 36, 3), Bottleneck),
    "resnext50_32x4d": Architecture((3, 4, 6, 3), Bottleneck, groups=32, width_per_group=4),
    "resnext101_32x8d": Architecture((3, 4, 23, 3), Bottleneck, groups=32, width_per_group=8),
    "resnext101_64x4d": Architecture((3, 4, 23, 3), Bottleneck, groups=64, width_per_group=4),
    "wide_resnet50_2": Architecture((3, 4, 6, 3), Bottleneck, width_per_group=128),
    "wide_resnet101_2": Architecture((3, 4, 23, 3), Bottleneck, width_per_group=128),
    # Section 4.2 of the first paper: 6n + 2 layers, shortcuts A.
    **{
        f"cifar_resnet{6 * n + 2}": Architecture((n, n, n), BasicBlock, width=16, cifar=True, shortcut="A")
        for n in (3, 5, 7, 9, 18, 200)
    },
}
