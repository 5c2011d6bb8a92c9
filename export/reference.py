"""The reference that all that is exported is compared with: PyTorch alone, as plainly as it can be written."""

from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from models.manifest import ChannelOrder, Preprocessing


def reference_logits(
    network: nn.Module, images: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Run a network on RGB images uint8[N, H, W, 3]: logits float32[N, num_classes]."""
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    pixels = torch.from_numpy(_seen(images, preprocessing.channels)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        logits: Tensor = network((pixels - mean) / std)
    return logits.numpy()


def _seen(images: NDArray[np.uint8], channels: ChannelOrder) -> NDArray[np.uint8]:
    """The channels of RGB images that a network sees, uint8[N, H, W, 3], or [N, H, W, 1] of grey."""
    match channels:
        case "rgb":
            return images.copy()
        case "bgr":
            return images[..., ::-1].copy()
        case "grey":
            return np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., np.newaxis] for image in images])
        case _:
            assert_never(channels)
