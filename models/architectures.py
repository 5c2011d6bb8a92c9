"""The networks as data: what distinguishes one from another.

Sources: [ResNet] He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385); [identity] He et al.,
"Identity Mappings in Deep Residual Networks" (arXiv:1603.05027); [ResNeXt] Xie et al., "Aggregated Residual
Transformations for Deep Neural Networks" (arXiv:1611.05431); [wide] Zagoruyko and Komodakis, "Wide Residual Networks"
(arXiv:1605.07146). This module needs no torch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Block = Literal["basic", "bottleneck"]
"""Two 3x3 convolutions; or a 1x1, a 3x3 and a 1x1 that has four times their channels ([ResNet] figure 5)."""
Style = Literal["post-activation", "pre-activation", "plain"]
"""Post-activation: batch norm after each convolution, ReLU after the sum ([ResNet]). Pre-activation: batch norm and
ReLU before each convolution, nothing after the sum ([identity] figure 4e). Plain: no sum ([ResNet] section 3.3)."""
Shortcut = Literal["A", "B", "C"]
"""How a residual block's input reaches its sum ([ResNet] section 4.1): A fills new channels with zeros and has no
parameters, B projects where the shape changes, C projects in every block."""
SHORTCUTS: tuple[Shortcut, ...] = get_args(Shortcut)
StrideIn = Literal["1x1", "3x3"]
"""Which convolution of a bottleneck halves the resolution: the first 1x1 in the papers, the 3x3 in fb.resnet.torch and
torchvision, which is more accurate and costs more."""
STRIDES_IN: tuple[StrideIn, ...] = get_args(StrideIn)


@dataclass(frozen=True)
class Architecture:
    """One network."""

    depths: tuple[int, ...]
    """Blocks in each stage; the first stage keeps the resolution, each later one halves it."""
    block: Block
    style: Style = "post-activation"
    width: int = 64
    """Channels of the stem and width of the first stage; doubles with each stage."""
    groups: int = 1
    width_per_group: int = 64
    cifar: bool = False
    """For 32x32 images: the stem is one 3x3 convolution that keeps the resolution."""
    shortcut: Shortcut = "B"
    """Without a meaning in plain networks."""
    stride_in: StrideIn = "3x3"
    """Without a meaning in basic blocks."""


_STAGES: dict[int, tuple[tuple[int, ...], Block]] = {
    18: ((2, 2, 2, 2), "basic"),
    34: ((3, 4, 6, 3), "basic"),
    50: ((3, 4, 6, 3), "bottleneck"),
    101: ((3, 4, 23, 3), "bottleneck"),
    152: ((3, 8, 36, 3), "bottleneck"),
    200: ((3, 24, 36, 3), "bottleneck"),
}
"""Depth to stages: [ResNet] table 1; 200 has 16 more blocks of 28x28 than 152 ([identity] section 5)."""

ARCHITECTURES = {
    **{f"resnet{depth}": Architecture(*_STAGES[depth]) for depth in (18, 34, 50, 101, 152)},
    "resnext50_32x4d": Architecture(*_STAGES[50], groups=32, width_per_group=4),
    "resnext101_32x8d": Architecture(*_STAGES[101], groups=32, width_per_group=8),
    "resnext101_64x4d": Architecture(*_STAGES[101], groups=64, width_per_group=4),
    "wide_resnet50_2": Architecture(*_STAGES[50], width_per_group=128),
    "wide_resnet101_2": Architecture(*_STAGES[101], width_per_group=128),
    **{f"preresnet{depth}": Architecture(*_STAGES[depth], "pre-activation") for depth in _STAGES},
    **{f"plain{depth}": Architecture(*_STAGES[depth], "plain") for depth in (18, 34)},
    # [ResNet] section 4.2: 6n + 2 layers, shortcuts A.
    **{
        f"cifar_resnet{6 * n + 2}": Architecture((n, n, n), "basic", width=16, cifar=True, shortcut="A")
        for n in (3, 5, 7, 9, 18, 200)
    },
    "cifar_preresnet110": Architecture((18, 18, 18), "basic", "pre-activation", width=16, cifar=True, shortcut="A"),
    # The authors' resnet-1k-layers: 9n + 2 layers, stride in the 1x1.
    **{
        f"cifar_preresnet{9 * n + 2}": Architecture(
            (n, n, n), "bottleneck", "pre-activation", width=16, cifar=True, stride_in="1x1"
        )
        for n in (18, 111)
    },
}
