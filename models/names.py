"""Translates other libraries' parameter names to ours, and finds the networks that a state dict fits.

Our names are torchvision's, or timm's where torchvision lacks the network. A naming layout is recognised by an anchor:
a parameter name that only its networks have. A prefix before the anchor is that of enclosing modules and is kept.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from models.architectures import ARCHITECTURES, Architecture
from models.resnet import ResNet


class _Layout(NamedTuple):
    """How a library names a network's parameters."""

    anchor: str
    """Pattern of a name that each network with this layout has exactly once."""
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
    """Patterns and their replacements, applied in order to names without the prefix before the anchor."""


def _block(match: re.Match[str]) -> str:
    return f"layer{int(match[1]) + 1}.{match[2]}."


def _branch(match: re.Match[str]) -> str:
    return f".{'conv' if match[2] == 'convolution' else 'bn'}{int(match[1]) + 1}."


_LAYOUTS = (
    _Layout(  # transformers' ResNetForImageClassification
        r"resnet\.embedder\.embedder\.convolution\.weight",
        (
            (r"^resnet\.embedder\.embedder\.convolution\.", "conv1."),
            (r"^resnet\.embedder\.embedder\.normalization\.", "bn1."),
            (r"^resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", _block),
            (r"\.layer\.(\d+)\.(convolution|normalization)\.", _branch),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
            (r"^classifier\.1\.", "fc."),
        ),
    ),
    _Layout(  # timm's resnetv2: with a deep stem, shortcuts are pooled before their convolution
        r"stem\.conv1\.weight",
        (
            (r"^stem\.conv1\.", "conv1.0."),
            (r"^stem\.norm1\.", "conv1.1."),
            (r"^stem\.conv2\.", "conv1.3."),
            (r"^stem\.norm2\.", "conv1.4."),
            (r"^stem\.conv3\.", "conv1.6."),
            (r"\.downsample\.conv\.", ".downsample.1."),
        ),
    ),
    _Layout(
        r"stem\.conv\.weight",
        ((r"^stem\.conv\.", "conv1."), (r"\.downsample\.conv\.", ".downsample.0.")),
    ),
    _Layout(
        r"stages\.0\.blocks\.0\.conv1\.weight",
        (
            (r"^stages\.(\d+)\.blocks\.(\d+)\.", _block),
            (r"\.norm(\d)\.", r".bn\1."),
            (r"^norm\.", "last_bn."),
            (r"^head\.fc\.", "fc."),
        ),
    ),
    _Layout(  # MMPretrain
        r"backbone\.layer1\.0\.conv1\.weight",
        (
            (r"^head\.fc\.", "backbone.fc."),
            (r"^backbone\.stem\.0\.conv\.", "backbone.conv1.0."),
            (r"^backbone\.stem\.0\.bn\.", "backbone.conv1.1."),
            (r"^backbone\.stem\.1\.conv\.", "backbone.conv1.3."),
            (r"^backbone\.stem\.1\.bn\.", "backbone.conv1.4."),
            (r"^backbone\.stem\.2\.conv\.", "backbone.conv1.6."),
            (r"^backbone\.stem\.2\.bn\.", "backbone.bn1."),
            (r"\.se_layer\.conv(\d)\.conv\.", r".se.fc\1."),
        ),
    ),
)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name parameters as `models.resnet` does; names of an unknown layout stay as they are."""
    ours = dict(state)
    for layout in _LAYOUTS:
        prefixes = _before(layout.anchor, ours)
        ours = {_renamed(name, prefixes, layout): tensor for name, tensor in ours.items()}
    for prefix in _before(r"layer1\.0\.conv1\.weight", ours):
        _count_pooling(ours, f"{prefix}layer1.0.downsample", f"{prefix}layer2.0.downsample")
    # The last layer of timm's resnetv2 is a 1x1 convolution.
    return {
        name: tensor.flatten(1) if name.endswith("fc.weight") and tensor.ndim > 2 else tensor
        for name, tensor in ours.items()
    }


def _before(anchor: str, state: Mapping[str, Tensor]) -> list[str]:
    """List the prefixes before an anchor, one for each network."""
    pattern = re.compile(rf"(?:^|(?<=\.)){anchor}$")
    return [name[: match.start()] for name in state if (match := pattern.search(name))]


def _count_pooling(state: dict[str, Tensor], kept: str, halved: str) -> None:
    """Shift the indices of a resolution-keeping projection by one, for the pooling that MMPretrain leaves out there."""
    if f"{halved}.2.weight" in state:
        for old, new in (("1", "2"), ("0", "1")):
            for name in [name for name in state if name.startswith(f"{kept}.{old}.") and f"{kept}.0.weight" in state]:
                state[f"{kept}.{new}.{name.rpartition('.')[2]}"] = state.pop(name)


def _renamed(name: str, prefixes: list[str], layout: _Layout) -> str:
    for prefix in prefixes:
        if name.startswith(prefix):
            inner = name.removeprefix(prefix)
            for pattern, replacement in layout.rules:
                inner = re.sub(pattern, replacement, inner)
            return prefix + inner
    return name


def recognise(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Name the architectures that fit a state dict with our names, for any classes and channels; () if none do.

    Several fit if they differ only in parts without parameters.
    """
    shapes = _shapes(state)
    depths = _depths(shapes)
    candidates = {_distinct(architecture) for architecture in ARCHITECTURES.values() if architecture.depths == depths}
    # The first block already rules out most candidates, in a tenth of the time.
    first = {one for one in candidates if _shapes_of(replace(one, depths=(1,))).items() <= shapes.items()}
    fitting = {one for one in first if _shapes_of(one) == shapes}
    return tuple(name for name, architecture in ARCHITECTURES.items() if _distinct(architecture) in fitting)


def _distinct(architecture: Architecture) -> Architecture:
    """Reset the fields that change neither names nor shapes of parameters."""
    return replace(architecture, stride_in="3x3", anti_aliasing=None)


def _shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        shapes = _shapes(ResNet(architecture, 1).state_dict())
    if len(architecture.depths) == 1:  # its shape is another in the whole network
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("last_bn.")}
    return shapes


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes, without parts that depend on classes or channels and names that older files lack."""
    return {
        name: (len(tensor), *tensor.shape[2:]) if name in ("conv1.weight", "conv1.0.weight") else tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }


def _depths(names: Mapping[str, object]) -> tuple[int, ...]:
    """Count the blocks in each stage."""
    blocks = {(int(match[1]), int(match[2])) for name in names if (match := re.match(r"layer(\d+)\.(\d+)\.", name))}
    stages = [stage for stage, _ in blocks]
    return tuple(stages.count(stage) for stage in sorted(set(stages)))
