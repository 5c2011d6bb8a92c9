"""From an architecture's name to its network in PyTorch."""

from dataclasses import replace

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from models.resnet import ARCHITECTURES, GlobalAveragePool, ResNet
from models.zoo import Shortcut


def build(architecture: str, num_classes: int, shortcut: Shortcut | None = None, seed: int = 0) -> nn.Module:
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
            residual = ARCHITECTURES[architecture]
            network = ResNet(replace(residual, shortcut=shortcut or residual.shortcut), num_classes)
    return network.eval()
