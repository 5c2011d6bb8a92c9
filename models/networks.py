"""Builds the PyTorch network of an architecture or its name."""

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from models.architectures import ARCHITECTURES, Architecture
from models.resnet import GlobalAveragePool, ResNet


def build(architecture: str | Architecture, num_classes: int, seed: int = 0) -> nn.Module:
    """Build a network in evaluation mode with random parameters that depend on `seed` alone.

    It maps normalised images float32[N, 3, H, W] to logits float32[N, num_classes].

    Raises:
        KeyError: there is no such architecture.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "efficientnet_lite0":
            network: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
            network._avg_pooling = GlobalAveragePool()
        else:
            known = architecture if isinstance(architecture, Architecture) else ARCHITECTURES[architecture]
            network = ResNet(known, num_classes)
    return network.eval()


def first_weight(network: nn.Module) -> str:
    """Name the weight of a network's first convolution, [outputs, channels of the image, height, width]."""
    return next(f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def see_grey(network: nn.Module) -> None:
    """Make a network take one channel; its answers are those for an image that repeats this channel three times."""
    first = network.get_submodule(first_weight(network).rpartition(".")[0])
    if not isinstance(first, nn.Conv2d):
        raise TypeError(f"{first} is not a convolution")
    first.in_channels = 1
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
