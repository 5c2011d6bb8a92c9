"""The reference that all that is exported is compared with: PyTorch alone, as plainly as it can be written."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.manifest import Preprocessing


def reference_logits(
    network: nn.Module, images: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Run a network on RGB images uint8[N, H, W, 3]: logits float32[N, num_classes]."""
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        logits: Tensor = network((pixels - mean) / std)
    return logits.numpy()
