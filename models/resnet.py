"""One definition for ResNet, its pre-activation form, plain networks, ResNeXt, Wide ResNet, the CIFAR family, and
timm's variants of these.

`models.architectures` names the papers. Parameter names and shapes are those of torchvision and timm, so that their
published files load unchanged. Pre-activation networks keep these names, too, although timm has others (`models.names`
translates them): `bn1` comes before `conv1` (the first block has none if the stem has one), a projection has no batch
norm, and `last_bn` lies between the last block and the pooling.
"""

import math
from collections import OrderedDict
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.architectures import Architecture, Block, Style

_NORM_GROUPS = 32


def _norm(architecture: Architecture, channels: int) -> nn.BatchNorm2d | nn.GroupNorm:
    if architecture.norm == "group":
        return nn.GroupNorm(_NORM_GROUPS, channels)
    return nn.BatchNorm2d(channels)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)


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
    """Build the path from a block's input to its sum; None is the identity."""
    if architecture.style == "plain" or (architecture.shortcut != "C" and stride == 1 and inputs == outputs):
        return None
    if architecture.shortcut == "A":
        return ZeroPadShortcut(inputs, outputs, stride)
    layers: list[nn.Module] = []
    if architecture.pooled_shortcut:
        # An odd last row or column is averaged by itself.
        layers.append(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity())
    layers.append(_conv(inputs, outputs, 1, 1 if architecture.pooled_shortcut else stride))
    if architecture.style != "pre-activation":  # there, the input is normalised already
        layers.append(_norm(architecture, outputs))
    return nn.Sequential(*layers)


def _last_norm(architecture: Architecture, channels: int) -> nn.BatchNorm2d | nn.GroupNorm:
    """Build the last norm of a residual branch, scaled by 1 / sqrt(number of blocks) until weights are loaded.

    With unit scales an untrained network's activations double in variance with each block: infinite after 600.
    """
    norm = _norm(architecture, channels)
    if architecture.style != "plain":
        nn.init.constant_(norm.weight, sum(architecture.depths) ** -0.5)
    return norm


class SqueezeExcitation(nn.Module):
    """Weights each channel by a factor that two layers compute from the channels' means."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(8, channels // reduction)
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.fc2 = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, channels, H, W] to the same."""
        weights: Tensor = self.fc2(functional.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()
        return x * weights


class EfficientChannelAttention(nn.Module):
    """Weights each channel by a factor that a convolution computes from the means of neighbouring channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        neighbours = int((math.log2(channels) + 1) / 2)  # [ECA] equation 12
        size = max(3, neighbours if neighbours % 2 else neighbours + 1)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, channels, H, W] to the same."""
        weights: Tensor = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * weights.transpose(1, 2).unsqueeze(3)


def _attention(architecture: Architecture, channels: int) -> nn.Module:
    match architecture.attention:
        case None:
            return nn.Identity()
        case "se":
            return SqueezeExcitation(channels, architecture.reduction)
        case "eca":
            return EfficientChannelAttention(channels)
        case _:
            assert_never(architecture.attention)


class BlurPool(nn.Module):
    """A binomial filter of 3x3 pixels, mirrored at the border, that halves the resolution."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", torch.outer(row, row).expand(channels, 1, 3, 3).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, channels, H, W] to float32[N, channels, H / 2, W / 2]."""
        padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, self.kernel, stride=2, groups=len(self.kernel))


class ZeroBorder(nn.Module):
    """Adds a border of zeros to an image.

    ONNX Runtime would move an ordinary padding by zeros into the pooling after it, which ignores its padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, C, H, W] to float32[N, C, H + 2, W + 2]."""
        row = torch.zeros_like(x[:, :, :1])
        x = torch.cat([row, x, row], 2)
        column = torch.zeros_like(x[:, :, :, :1])
        return torch.cat([column, x, column], 3)


def _anti_aliasing(architecture: Architecture, channels: int, stride: int) -> nn.Module:
    """Build the layer that halves the resolution in place of a convolution's stride."""
    if stride == 1 or architecture.anti_aliasing is None:
        return nn.Identity()
    return nn.AvgPool2d(2) if architecture.anti_aliasing == "mean" else BlurPool(channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, architecture: Architecture, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, 1 if architecture.anti_aliasing else stride)
        self.bn1 = _norm(architecture, width)
        self.anti_aliasing = _anti_aliasing(architecture, width, stride)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = _last_norm(architecture, width)
        self.se = _attention(architecture, width)
        self.downsample = _shortcut(architecture, inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, width, H / stride, W / stride]."""
        residual = self.anti_aliasing(functional.relu(self.bn1(self.conv1(x))))
        residual = self.se(self.bn2(self.conv2(residual)))
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
        if architecture.anti_aliasing:
            strides = (1, 1)
        self.conv1 = _conv(inputs, inner, 1, strides[0])
        self.bn1 = _norm(architecture, inner)
        self.conv2 = _conv(inner, inner, 3, strides[1], groups)
        self.bn2 = _norm(architecture, inner)
        self.anti_aliasing = _anti_aliasing(architecture, inner, stride)
        self.conv3 = _conv(inner, outputs, 1)
        self.bn3 = _last_norm(architecture, outputs)
        self.se = _attention(architecture, outputs)
        self.downsample = _shortcut(architecture, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32[N, inputs, H, W] to float32[N, 4 * width, H / stride, W / stride]."""
        residual = functional.relu(self.bn1(self.conv1(x)))
        residual = self.anti_aliasing(functional.relu(self.bn2(self.conv2(residual))))
        residual = self.se(self.bn3(self.conv3(residual)))
        return functional.relu(residual + (x if self.downsample is None else self.downsample(x)))


class PreActivationBasicBlock(BasicBlock):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a shortcut."""

    def __init__(self, architecture: Architecture, inputs: int, width: int, stride: int) -> None:
        super().__init__(architecture, inputs, width, stride)
        self.bn1 = _norm(architecture, inputs)
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
        self.bn1 = _norm(architecture, inputs)
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


def _stem(architecture: Architecture) -> tuple[OrderedDict[str, nn.Module], int]:
    """Build the layers before the first block; return them and their number of output channels."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = architecture.width
    if architecture.cifar:
        layers["conv1"] = _conv(3, channels, 3)
    elif architecture.deep_stem:
        first, second, channels = architecture.deep_stem
        layers["conv1"] = nn.Sequential(
            _conv(3, first, 3, 2),
            _norm(architecture, first),
            nn.ReLU(),
            _conv(first, second, 3),
            _norm(architecture, second),
            nn.ReLU(),
            _conv(second, channels, 3),
        )
    else:
        layers["conv1"] = _conv(3, channels, 7, 2)
    if architecture.stem_norm:
        layers["bn1"] = _norm(architecture, channels)
        layers["relu"] = nn.ReLU()
    if not architecture.cifar:
        layers["maxpool"] = _stem_pool(architecture, channels)
    return layers, channels


def _stem_pool(architecture: Architecture, channels: int) -> nn.Module:
    match architecture.stem_pool:
        case "max" if architecture.anti_aliasing == "mean":
            return nn.AvgPool2d(2)
        case "max" if architecture.anti_aliasing == "blur":
            return nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BlurPool(channels))
        case "max":
            return nn.MaxPool2d(3, stride=2, padding=1)
        case "max over zeros":
            return nn.Sequential(ZeroBorder(), nn.MaxPool2d(3, stride=2))
        case "convolution":
            return nn.Sequential(_conv(channels, channels, 3, 2), _norm(architecture, channels), nn.ReLU())
        case _:
            assert_never(architecture.stem_pool)


def _standardised(weight: Tensor) -> Tensor:
    """Scale the weights of each filter, [outputs, ...], to mean 0 and variance 1; float64, to be rounded once."""
    variance, mean = torch.var_mean(weight.double(), dim=(1, 2, 3), correction=0, keepdim=True)
    return (weight - mean) / (variance + 1e-8).sqrt()  # 1e-8: [BiT]'s models


def _standardise_loaded(_: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: object) -> None:
    """Standardise the filters once as they are loaded, instead of for each image.

    Standardising them again changes next to nothing.
    """
    for name, tensor in state.items():
        if name.startswith(prefix) and tensor.ndim == 4:
            state[name] = _standardised(tensor)


class ResNet(nn.Sequential):
    """Maps normalised images float32[N, 3, H, W] to logits float32[N, num_classes]."""

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        width = architecture.width
        block = _BLOCKS[architecture.block, architecture.style]
        layers, channels = _stem(architecture)
        for stage, depth in enumerate(architecture.depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(architecture, channels, width << stage, stride))
                channels = (width << stage) * block.expansion
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        if architecture.style == "pre-activation":
            if architecture.stem_norm:
                # Appendix of arXiv:1603.05027: the first activation follows the stem directly, before the paths split,
                # and another follows the last sum.
                layers["layer1"].set_submodule("0.bn1", nn.Identity())
                layers["layer1"].set_submodule("0.relu1", nn.Identity())
            layers["last_bn"] = _norm(architecture, channels)
            layers["last_relu"] = nn.ReLU()
        layers["avgpool"] = GlobalAveragePool()
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # initialising those takes seconds
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if architecture.standardised:
                    module.weight.data = _standardised(module.weight.data).float()
        if architecture.standardised:
            self.register_load_state_dict_pre_hook(_standardise_loaded)  # type: ignore[no-untyped-call]
