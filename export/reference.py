"""The reference for every export: PyTorch alone, written as plainly as possible."""

from collections.abc import Callable
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from export.parity import Known
from models.manifest import ChannelOrder, Preprocessing


def reference_logits(
    network: Callable[[Tensor], Tensor], images: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Run a network on RGB images uint8[N, H, W, 3]: logits float32[N, num_classes]."""
    with torch.inference_mode():
        return network(normalised(images, preprocessing)).numpy()


def reference_answers(network: nn.Module, images: NDArray[np.uint8], preprocessing: Preprocessing) -> Known:
    """Run a network on RGB images uint8[N, H, W, 3]: its logits, and the input of its last linear layer, if any."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    seen: list[Tensor] = []
    watched = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for layer in layers]
    try:
        logits = reference_logits(network, images, preprocessing)
    finally:
        for each in watched:
            each.remove()
    return Known(logits, seen[-1].detach().flatten(1).numpy() if seen else None)


def normalised(images: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Convert RGB images uint8[N, H, W, 3] to the network's input, float32[N, C, H, W]."""
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    pixels = torch.from_numpy(_seen(images, preprocessing.channels)).permute(0, 3, 1, 2).float() / 255
    return (pixels - mean) / std


def _seen(images: NDArray[np.uint8], channels: ChannelOrder) -> NDArray[np.uint8]:
    """Convert RGB images to the network's channels: uint8[N, H, W, 3], or [N, H, W, 1] for grey."""
    match channels:
        case "rgb":
            return images.copy()
        case "bgr":
            return images[..., ::-1].copy()
        case "grey":
            return np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., np.newaxis] for image in images])
        case _:
            assert_never(channels)
