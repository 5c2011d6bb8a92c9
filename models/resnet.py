"""One definition for ResNet, its pre-activation form, plain networks, ResNeXt, Wide ResNet and the CIFAR family.

The papers are named in `models.architectures`. Parameter names and shapes are those of torchvision, so that its
published files load unchanged. Pre-activation networks, which torchvision lacks, have the same names, but `bn1` comes
before `conv1` (the first block has none, the stem's serves it), a projection is `downsample.0` alone, and `last_bn`
lies between the last block and the pooling.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from models.architectures import Architecture, Block, Style


class ZeroPadShortcut(nn.Module):
    """Shortcut A: every `stride`-th pixel, and zeros for the channels the input lacks, half of them on each side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, outputs, H / stride, W / stride]."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


def _shortcut(architecture: Architecture, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """Build what lies between a block's input and its sum; None is the identity."""
    if architecture.style == "plain" or (architecture.shortcut != "C" and stride == 1 and inputs == outputs):
        return None
    if architecture.shortcut == "A":
        return ZeroPadShortcut(inputs, outputs, stride)
    projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    if architecture.style == "pre-activation":  # its input is normalised already
        return nn.Sequential(projection)
    return nn.Sequential(projection, nn.BatchNorm2d(outputs))


def _last_norm(architecture: Architecture, channels: int) -> nn.BatchNorm2d:
    """Build the last batch norm of a residual branch, scaled by 1 / sqrt(number of blocks) until weights are loaded.

    With unit scales an untrained network's activations double in variance with each block: infinite after 600.
    """
    norm = nn.BatchNorm2d(channels)
    if architecture.style != "plain":
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
        self.downsample = _shortcut(architecture, inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, width, H / stride, W / stride]."""
        residual = functional.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return functional.relu(residual + (x if self.downsample is None else self.downsample(x)))


class PlainBlock(BasicBlock):
    """Two 3x3 convolutions and no shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, width, H / stride, W / stride]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, architecture: Architecture, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        groups = architecture.groups
        inner = width * architecture.width_per_group // 64 * groups
        outputs = width * self.expansion
        strides = (stride, 1) if architecture.stride_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(inputs, inner, 1, strides[0], bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, strides[1], padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = _last_norm(architecture, outputs)
        self.downsample = _shortcut(architecture, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, 4 * width, H / stride, W / stride]."""
        residual = functional.relu(self.bn1(self.conv1(x)))
        residual = functional.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return functional.relu(residual + (x if self.downsample is None else self.downsample(x)))


class PreActivationBasicBlock(BasicBlock):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a shortcut."""

    def __init__(self, architecture: Architecture, inputs: int, width: int, stride: int) -> None:
        super().__init__(architecture, inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, width, H / stride, W / stride]."""
        activated = self.relu1(self.bn1(x))
        residual: Tensor = self.conv1(activated)
        residual = self.conv2(functional.relu(self.bn2(residual)))
        return residual + (x if self.downsample is None else self.downsample(activated))


class PreActivationBottleneck(Bottleneck):
    """1x1, 3x3 and 1x1 convolutions, each after batch norm and ReLU, beside a shortcut."""

    def __init__(self, architecture: Architecture, inputs: int, width: int, stride: int) -> None:
        super().__init__(architecture, inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.bn3 = _last_norm(architecture, self.conv3.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, 4 * width, H / stride, W / stride]."""
        activated = self.relu1(self.bn1(x))
        residual: Tensor = self.conv1(activated)
        residual = self.conv2(functional.relu(self.bn2(residual)))
        residual = self.conv3(functional.relu(self.bn3(residual)))
        return residual + (x if self.downsample is None else self.downsample(activated))


_BLOCKS: dict[tuple[Block, Style], type[BasicBlock | Bottleneck]] = {
    ("basic", "post-activation"): BasicBlock,
    ("basic", "pre-activation"): PreActivationBasicBlock,
    ("basic", "plain"): PlainBlock,
    ("bottleneck", "post-activation"): Bottleneck,
    ("bottleneck", "pre-activation"): PreActivationBottleneck,
}


class GlobalAveragePool(nn.Module):
    """Mean over the image. `nn.AdaptiveAvgPool2d(1)` is the same, but exports as nine operators instead of one."""

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, C, H, W] to float32[N, C]."""
        return x.mean((2, 3))


class ResNet(nn.Sequential):
    """From normalised images float32[N, 3, H, W] to logits float32[N, num_classes]."""

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        width = channels = architecture.width
        block = _BLOCKS[architecture.block, architecture.style]
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
                blocks.append(block(architecture, channels, width << stage, stride))
                channels = (width << stage) * block.expansion
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        if architecture.style == "pre-activation":
            # Appendix of arXiv:1603.05027: the first activation is right after the stem, before the two paths part, and
            # there is one more after the last sum.
            layers["layer1"].set_submodule("0.bn1", nn.Identity())
            layers["layer1"].set_submodule("0.relu1", nn.Identity())
            layers["last_bn"] = nn.BatchNorm2d(channels)
            layers["last_relu"] = nn.ReLU()
        layers["avgpool"] = GlobalAveragePool()
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
