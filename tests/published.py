"""Models as on the hub: files as timm and transformers write them, written by hand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.hub import Folder
from models.manifest import Preprocessing

RESNET50_A1: Mapping[str, Any] = {
    "architecture": "resnet50",
    "num_classes": 1000,
    "num_features": 2048,
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "custom_load": False,
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "test_crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 1000,
        "pool_size": [7, 7],
        "first_conv": "conv1",
        "classifier": "fc",
    },
}
"""timm/resnet50.a1_in1k."""
RESNET_50: Mapping[str, Any] = {
    "architectures": ["ResNetForImageClassification"],
    "depths": [3, 4, 6, 3],
    "downsample_in_first_stage": False,
    "embedding_size": 64,
    "hidden_act": "relu",
    "hidden_sizes": [256, 512, 1024, 2048],
    "layer_type": "bottleneck",
    "model_type": "resnet",
    "num_channels": 3,
    "id2label": {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus"},
}
"""microsoft/resnet-50, but for most of its classes."""
CONVNEXT: Mapping[str, Any] = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}
"""The preprocessor_config.json of microsoft/resnet-50."""
IMAGENET_256 = Preprocessing(
    resize=256, crop=(224, 224), interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def folder(path: Path, config: Mapping[str, Any] | str, preprocessor: Mapping[str, Any] | None = None) -> Folder:
    """A folder with these files, and no parameters."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if preprocessor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return Folder(path)


def timm_config(architecture: str, num_classes: int, **pretrained: object) -> dict[str, Any]:
    """As `timm.save_for_hf` writes it for a network that somebody has trained."""
    known = RESNET50_A1["pretrained_cfg"] | {"tag": None, "num_classes": num_classes} | pretrained
    arguments = {"num_classes": num_classes, "in_chans": 3, "global_pool": "avg", "drop_rate": 0.1}
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        "model_args": arguments,
        "pretrained_cfg": known,
    }
