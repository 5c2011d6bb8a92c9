"""Reads transformers' `config.json` and `preprocessor_config.json`: the network, its classes, its preprocessing."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import Field

from models import config, hub, labels
from models.architectures import ARCHITECTURES, Architecture, Block
from models.config import Config, Ours, Published, Transformers, UnknownPreprocessingError
from models.hub import Place, SourceError
from models.manifest import CropMode, Label, Preprocessing
from models.zoo import IMAGENET_MEAN, IMAGENET_STD


class _Model(Config):
    """Defaults are those of `PreTrainedConfig`, which files omit."""

    model_type: str
    architectures: tuple[str, ...] = ()
    id2label: dict[int, str] = Field({0: "LABEL_0", 1: "LABEL_1"})
    problem_type: str = ""
    num_channels: int = 3


class _ResNet(_Model):
    """Defaults are those of `ResNetConfig`."""

    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: Block = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False


def read(content: Mapping[str, Any], place: Place) -> Published:
    """Read a config, and that of the image processor beside it.

    Raises:
        SourceError: the config is not as transformers writes it, or the model is not an image classifier.
    """
    found = config.checked(_Model, content, place)
    if not any("ForImageClassification" in name for name in found.architectures):  # DeiT: ...WithTeacher
        what = ", ".join(found.architectures) or found.model_type
        raise SourceError(f"{place.origin} is no image classifier, but {what}: it has no classes to answer with")
    if found.problem_type == "regression":
        raise SourceError(f"{place.origin} is a regression: it has no classes to answer with")
    if found.num_channels != 3:
        raise SourceError(f"{place.origin} takes {found.num_channels} channels, but images here have 3")
    classes, named, mistake = _labels(found)
    several = found.problem_type == "multi_label_classification" or len(classes) == 1
    ours = _our_resnet(config.checked(_ResNet, content, place)) if found.model_type == "resnet" else None
    return Published(
        ours or Transformers(found.model_type, place.file(hub.CONFIG)),
        _preprocessing(place, found.model_type),
        "sigmoid" if several else "softmax",  # as the image-classification pipeline chooses
        classes,
        named=named,
        mistake=mistake,
    )


def _labels(found: _Model) -> tuple[tuple[Label, ...], bool, str]:
    """Return the labels, whether they are real names, and why the names cannot be used."""
    count = len(found.id2label)
    numbered = labels.numbered(count)
    if sorted(found.id2label) != list(range(count)):
        return numbered, False, "has an id2label that does not number its classes from 0 on"
    try:
        names = [labels.printable(found.id2label[index], f"class {index} in its id2label") for index in range(count)]
    except labels.LabelsError as error:
        return numbered, False, f"has names that cannot be used ({error})"
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return numbered, False, ""
    imagenet = labels.imagenet()
    if [name.split(",")[0] for name in names] == [label.label for label in imagenet]:
        return imagenet, True, ""  # the same, with their WordNet ids
    return tuple(Label(label=name) for name in names), True, ""


def _our_resnet(found: _ResNet) -> Ours | None:
    """Describe the network in the terms of `models.resnet`; None if these do not suffice."""
    plain = Architecture(found.depths, found.layer_type, width=found.embedding_size)
    expansion = 4 if found.layer_type == "bottleneck" else 1
    sizes = tuple(found.embedding_size * expansion << stage for stage in range(len(found.depths)))
    if (found.hidden_sizes, found.hidden_act, found.downsample_in_first_stage) != (sizes, "relu", False):
        return None
    name = next((name for name, known in ARCHITECTURES.items() if known == plain), None)
    if name is None:
        depths = "-".join(map(str, found.depths))
        name = f"resnet of {depths} {found.layer_type} blocks, {found.embedding_size} wide"
    if found.downsample_in_bottleneck and found.layer_type == "bottleneck":
        return Ours(f"{name} with stride in the 1x1", replace(plain, stride_in="1x1"))
    return Ours(name, plain)


_FILTERS: Mapping[int, str] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers, as the files have them."""
_SMALL_CONVNEXT = 384
"""Smallest side in pixels to which ConvNext's processor squashes images; to smaller sides it crops them."""
_CLIP: Mapping[str, Any] = {
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_MOBILE_NET: Mapping[str, Any] = {"size": {"shortest_edge": 256}, "do_center_crop": True, "resample": 2}
_PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ConvNext": {"size": {"shortest_edge": 384}},
    "ViT": {"size": {"height": 224, "width": 224}, "resample": 2},
    "DeiT": {"size": {"height": 256, "width": 256}, "do_center_crop": True},
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "Beit": {"size": {"height": 224, "width": 224}},
    "Levit": {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    },
    "MobileNetV1": _MOBILE_NET,
    "MobileNetV2": _MOBILE_NET,
    "EfficientNet": {"size": {"height": 346, "width": 346}, "crop_size": 289, "include_top": True},
}
"""Each image processor's defaults, where they differ from those of `_Processor`."""
_PROCESSOR_OF: Mapping[str, str] = {
    "bit": "BitImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "regnet": "ConvNextImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "vit": "ViTImageProcessor",
}
"""By `model_type`: the processor that `AutoImageProcessor` uses if the file names none."""


class _Processor(Config):
    do_resize: bool = True
    size: dict[str, int | None] = Field(default_factory=dict)
    resample: int = 3
    crop_pct: float = Field(0.875, gt=0)
    do_center_crop: bool = False
    crop_size: int | dict[str, int] = 224
    do_rescale: bool = True
    rescale_factor: float = Field(1 / 255, gt=0)
    do_normalize: bool = True
    image_mean: tuple[float, ...] | float = 0.5
    image_std: tuple[float, ...] | float = 0.5
    rescale_offset: bool = False
    """EfficientNet only: subtract 1 before the mean."""
    include_top: bool = False
    """EfficientNet only: divide by the standard deviation twice."""


class _Geometry(NamedTuple):
    """The fields of `Preprocessing` with these names."""

    resize: int
    crop: tuple[int, int]
    crop_mode: CropMode


def _preprocessing(place: Place, model_type: str) -> Preprocessing | UnknownPreprocessingError:
    if not place.has(hub.PREPROCESSOR):
        return UnknownPreprocessingError(f"there is no {hub.PREPROCESSOR}")
    content = config.read_json(place, hub.PREPROCESSOR)
    said = content.get("image_processor_type") or content.get("feature_extractor_type")
    said = said or _PROCESSOR_OF.get(model_type, "not named")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(said))
    usual = _PROCESSORS.get(kind)
    if usual is None:
        return UnknownPreprocessingError(f"its processor is {said}")
    if isinstance(content.get("size"), int):  # as older versions wrote it: what it means depends on the processor
        content["size"] = dict.fromkeys(usual["size"], content["size"])
    processor = config.checked(_Processor, {**usual, **content}, place)
    if kind == "Levit" and (side := processor.size.get("shortest_edge")):
        processor = processor.model_copy(update={"size": {"shortest_edge": int(256 / 224 * side)}})
    geometry = _convnext(processor) if kind == "ConvNext" else _resized_and_cropped(processor)
    if geometry is None or not processor.do_resize:
        return UnknownPreprocessingError(f"{said} does not make all images the same size in a way supported here")
    # It computes (pixel * factor - mean) / std, we (pixel / 255 - mean) / std.
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    if processor.rescale_offset and processor.do_rescale:
        mean = tuple(value + 1 for value in _three(mean))
    if processor.include_top:
        std = tuple(once * again for once, again in zip(_three(std), _three(processor.image_std), strict=True))
    return config.preprocessing(
        geometry._asdict()
        | {
            "interpolation": _FILTERS.get(processor.resample, f"number {processor.resample} of Pillow's"),
            "mean": _scaled(mean, factor),
            "std": _scaled(std, factor),
        }
    )


def _convnext(processor: _Processor) -> _Geometry | None:
    side = processor.size.get("shortest_edge")
    if side is None:
        return None
    if side < _SMALL_CONVNEXT:
        return _Geometry(int(side / processor.crop_pct), (side, side), "centre")
    return _Geometry(side, (side, side), "squash")


def _resized_and_cropped(processor: _Processor) -> _Geometry | None:
    """Describe the other processors: resize to `size`, then cut `crop_size` from the centre if `do_center_crop`."""
    size, cropped = processor.size, processor.crop_size
    crop = (cropped, cropped) if isinstance(cropped, int) else (cropped.get("height", 0), cropped.get("width", 0))
    if (short := size.get("shortest_edge")) and not size.get("longest_edge"):
        return _Geometry(short, crop, "centre") if processor.do_center_crop else None
    height, width = size.get("height"), size.get("width")
    if not height or not width:
        return None
    if not processor.do_center_crop:
        return _Geometry(max(height, width), (height, width), "squash")
    # `Preprocessing` cannot squash to proportions other than the crop's.
    return _Geometry(max(height, width), crop, "squash") if height * crop[1] == width * crop[0] else None


def _scaled(values: tuple[float, ...] | float, factor: float) -> tuple[float, ...]:
    return tuple(value / factor for value in _three(values))


def _three(values: tuple[float, ...] | float) -> tuple[float, ...]:
    return values if isinstance(values, tuple) else (values,) * 3
