"""The networks as data: what distinguishes one from another.

Sources: [ResNet] He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385); [identity] He et al.,
"Identity Mappings in Deep Residual Networks" (arXiv:1603.05027); [ResNeXt] Xie et al., "Aggregated Residual
Transformations for Deep Neural Networks" (arXiv:1611.05431); [wide] Zagoruyko and Komodakis, "Wide Residual Networks"
(arXiv:1605.07146); [tricks] He et al., "Bag of Tricks for Image Classification" (arXiv:1812.01187); [SE] Hu et al.,
"Squeeze-and-Excitation Networks" (arXiv:1709.01507); [ECA] Wang et al., "ECA-Net" (arXiv:1910.03151); [blur] Zhang,
"Making Convolutional Networks Shift-Invariant Again" (arXiv:1904.11486); [GN] Wu and He, "Group Normalization"
(arXiv:1803.08494); [BiT] Kolesnikov et al., "Big Transfer" (arXiv:1912.11370); [RS] Bello et al., "Revisiting ResNets"
(arXiv:2103.07579). Networks that timm also has are named as in timm. This module needs no torch.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

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
Attention = Literal["se", "eca"]
"""How the channels of a residual branch are weighted, given their means: by two layers ([SE]), or by a convolution over
neighbouring channels ([ECA])."""
AntiAliasing = Literal["mean", "blur"]
"""What halves the resolution instead of a stride: the mean of 2x2 pixels, or a binomial filter of 3x3 ([blur])."""
StemPool = Literal["max", "max over zeros", "convolution"]
"""How the stem halves the resolution again: by the largest of 3x3 pixels; by the same, with zeros beyond the border
([BiT]); or by a convolution ([RS])."""
Norm = Literal["batch", "group"]
"""Normalisation by statistics of the training set, or by those of 32 groups of the image's own channels ([GN])."""


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
    """Ignored in plain networks."""
    stride_in: StrideIn = "3x3"
    """Ignored in basic blocks."""
    deep_stem: tuple[int, int, int] | None = None
    """Channels of three 3x3 convolutions in place of the one 7x7 ([tricks] figure 2b)."""
    stem_norm: bool = True
    """False: in a pre-activation network the first block normalises after the stem's pooling, instead of the stem."""
    stem_pool: StemPool = "max"
    pooled_shortcut: bool = False
    """A shortcut halves the resolution by the mean of 2x2 pixels before its projection ([tricks] figure 2c)."""
    attention: Attention | None = None
    reduction: int = 16
    """Factor by which "se" has fewer channels between its two layers."""
    anti_aliasing: AntiAliasing | None = None
    norm: Norm = "batch"
    standardised: bool = False
    """The weights of each filter have mean 0 and variance 1 ([BiT])."""


_STAGES: dict[int, tuple[tuple[int, ...], Block]] = {
    10: ((1, 1, 1, 1), "basic"),
    14: ((1, 1, 1, 1), "bottleneck"),
    18: ((2, 2, 2, 2), "basic"),
    26: ((2, 2, 2, 2), "bottleneck"),
    34: ((3, 4, 6, 3), "basic"),
    50: ((3, 4, 6, 3), "bottleneck"),
    101: ((3, 4, 23, 3), "bottleneck"),
    152: ((3, 8, 36, 3), "bottleneck"),
    200: ((3, 24, 36, 3), "bottleneck"),
    269: ((3, 30, 48, 8), "bottleneck"),
}
"""Depth to stages: [ResNet] table 1; 200 has 16 more blocks of 28x28 than 152 ([identity] section 5); the others are
timm's."""

_C: dict[str, Any] = {"deep_stem": (32, 32, 64)}
_D: dict[str, Any] = {**_C, "pooled_shortcut": True}
_S: dict[str, Any] = {"deep_stem": (64, 64, 128)}
_T: dict[str, Any] = {"deep_stem": (24, 32, 64), "pooled_shortcut": True}
_SE: dict[str, Any] = {"attention": "se"}
_ECA: dict[str, Any] = {"attention": "eca"}
_MEAN: dict[str, Any] = {"anti_aliasing": "mean"}
_BLUR: dict[str, Any] = {"anti_aliasing": "blur"}
_RS: dict[str, Any] = {**_D, "attention": "se", "reduction": 4, "stem_pool": "convolution"}
_V2: dict[str, Any] = {"style": "pre-activation", "stem_norm": False}
_BIT: dict[str, Any] = {**_V2, "stem_pool": "max over zeros", "norm": "group", "standardised": True}


def _of(depth: int, *variants: dict[str, Any], **fields: Any) -> Architecture:
    """Describe a network of a usual depth."""
    for variant in variants:
        fields |= variant
    return Architecture(*_STAGES[depth], **fields)


def _next(depth: int, groups: int, width: int, *variants: dict[str, Any]) -> Architecture:
    """Describe a ResNeXt: `groups` groups of `width` channels."""
    return _of(depth, *variants, groups=groups, width_per_group=width)


TIMM = {
    **{f"resnet{depth}": _of(depth) for depth in (26, 200)},
    "resnext101_32x4d": _next(101, 32, 4),
    "resnext101_32x16d": _next(101, 32, 16),
    "resnext101_32x32d": _next(101, 32, 32),
    # A deep stem (c), also twice as wide (s); with pooled shortcuts (d), and a narrower first convolution (t).
    **{f"resnet{depth}c": _of(depth, _C) for depth in (50, 101, 152)},
    **{f"resnet{depth}s": _of(depth, _S) for depth in (50, 101, 152)},
    **{f"resnet{depth}d": _of(depth, _D) for depth in (18, 26, 34, 50, 101, 152, 200)},
    **{f"resnet{depth}t": _of(depth, _T) for depth in (10, 14, 26, 50)},
    "resnext50d_32x4d": _next(50, 32, 4, _D),
    "resnet50_gn": _of(50, norm="group"),
    # Channel attention.
    **{f"seresnet{depth}": _of(depth, _SE) for depth in (18, 34, 50, 101, 152)},
    **{f"seresnet{depth}d": _of(depth, _SE, _D) for depth in (152, 200, 269)},
    "seresnet50t": _of(50, _SE, _T),
    "seresnext26d_32x4d": _next(26, 32, 4, _SE, _D),
    "seresnext26t_32x4d": _next(26, 32, 4, _SE, _T),
    "seresnext50_32x4d": _next(50, 32, 4, _SE),
    "seresnext101_32x4d": _next(101, 32, 4, _SE),
    "seresnext101_32x8d": _next(101, 32, 8, _SE),
    "seresnext101_64x4d": _next(101, 64, 4, _SE),
    "seresnext101d_32x8d": _next(101, 32, 8, _SE, _D),
    **{f"ecaresnet{depth}d": _of(depth, _ECA, _D) for depth in (50, 101, 200, 269)},
    **{f"ecaresnet{depth}t": _of(depth, _ECA, _T) for depth in (26, 50)},
    "ecaresnetlight": Architecture((1, 1, 11, 3), "bottleneck", attention="eca", pooled_shortcut=True),
    **{f"ecaresnext{depth}t_32x4d": _next(depth, 32, 4, _ECA, _T) for depth in (26, 50)},
    # Anti-aliasing.
    "resnetaa50": _of(50, _MEAN),
    **{f"resnetaa{depth}d": _of(depth, _MEAN, _D) for depth in (34, 50, 101)},
    "seresnetaa50d": _of(50, _MEAN, _SE, _D),
    "seresnextaa101d_32x8d": _next(101, 32, 8, _MEAN, _SE, _D),
    "seresnextaa201d_32x8d": Architecture(
        (3, 24, 36, 4), "bottleneck", groups=32, width_per_group=8, **(_MEAN | _SE | _D | _S)
    ),
    **{f"resnetblur{depth}": _of(depth, _BLUR) for depth in (18, 50)},
    **{f"resnetblur{depth}d": _of(depth, _BLUR, _D) for depth in (50, 101)},
    # [RS].
    **{f"resnetrs{depth}": _of(depth, _RS) for depth in (50, 101, 152, 200)},
    "resnetrs270": Architecture((4, 29, 53, 4), "bottleneck", **_RS),
    "resnetrs350": Architecture((4, 36, 72, 4), "bottleneck", **_RS),
    "resnetrs420": Architecture((4, 44, 87, 4), "bottleneck", **_RS),
    # Pre-activation, and [BiT]: `x3` is three times as wide.
    **{f"resnetv2_{depth}": _of(depth, _V2) for depth in (18, 34, 50, 101, 152)},
    **{f"resnetv2_{depth}d": _of(depth, _V2, _D) for depth in (18, 34, 50, 101, 152)},
    "resnetv2_50t": _of(50, _V2, _T),
    "resnetv2_50d_gn": _of(50, _V2, _D, norm="group"),
    **{
        f"resnetv2_{depth}x{times}_bit": _of(depth, _BIT, width=64 * times)
        for depth, times in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
    },
}
"""Networks that timm has and torchvision lacks."""

ARCHITECTURES = {
    **{f"resnet{depth}": _of(depth) for depth in (18, 34, 50, 101, 152)},
    "resnext50_32x4d": _next(50, 32, 4),
    "resnext101_32x8d": _next(101, 32, 8),
    "resnext101_64x4d": _next(101, 64, 4),
    "wide_resnet50_2": _of(50, width_per_group=128),
    "wide_resnet101_2": _of(101, width_per_group=128),
    **{f"preresnet{depth}": _of(depth, style="pre-activation") for depth in (18, 34, 50, 101, 152, 200)},
    **{f"plain{depth}": _of(depth, style="plain") for depth in (18, 34)},
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
    **TIMM,
}
