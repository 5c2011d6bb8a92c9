"""Reads timm's `config.json`: the network, its preprocessing at inference, its classes."""

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices, Field

from models import config, labels
from models.architectures import ARCHITECTURES
from models.config import Config, Network, Ours, Published, Timm, UnknownPreprocessingError
from models.hub import Place, SourceError
from models.manifest import CropMode, Label, Preprocessing
from models.zoo import IMAGENET_MEAN, IMAGENET_STD

_Names = tuple[str, ...] | dict[int, str]
_Descriptions = tuple[str, ...] | dict[str, str]


_USUAL = {"in_chans": 3, "global_pool": "avg"}
"""Defaults that timm writes into the file although they change nothing."""
_OF_TRAINING = ("num_classes", "drop_")
"""Prefixes of arguments that only matter to training, or are read from elsewhere."""


class _Pretrained(Config):
    """Defaults are those of timm's `resolve_data_config`."""

    tag: str = ""
    input_size: tuple[int, int, int] = (3, 224, 224)
    interpolation: str = "bicubic"
    crop_pct: float = Field(0.875, gt=0)
    crop_mode: str = "center"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    num_classes: int = 1000
    label_names: _Names = Field((), validation_alias=AliasChoices("label_names", "labels"))
    label_descriptions: _Descriptions = ()


class _Timm(Config):
    architecture: str = Field(pattern=r"^\w+(\.\w+)?$")
    """One of timm's own networks: timm would fetch a name with a colon from elsewhere."""
    num_classes: int | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    pretrained_cfg: dict[str, Any] = Field(default_factory=dict)
    label_names: _Names = ()
    label_descriptions: _Descriptions = ()


def read(content: Mapping[str, Any], place: Place) -> Published:
    """Read a config.

    Raises:
        SourceError: it is not as timm writes it.
    """
    found = config.checked(_Timm, content, place)
    known = config.checked(_Pretrained, found.pretrained_cfg or content, place)  # older files have a single level
    num_classes = known.num_classes if found.num_classes is None else found.num_classes
    if known.input_size[0] not in (1, 3):
        raise SourceError(f"{place.origin} takes {known.input_size[0]} channels: an image has 3, or 1 where it is grey")
    given: tuple[Label, ...] = ()
    mistake = ""
    try:
        given = _labels(found.label_names or known.label_names, found.label_descriptions or known.label_descriptions)
    except labels.LabelsError as error:
        mistake = f"has names that cannot be used ({error})"
    if given and len(given) != num_classes:
        mistake = f"has {len(given)} labels for {num_classes} classes in its config"
        given = ()
    if (
        not given
        and not mistake
        and num_classes == 1000
        and any(name.endswith("in1k") for name in (known.tag, place.title))
    ):
        given = labels.imagenet()
    return Published(
        _network(found, known),
        _preprocessing(known),
        "softmax",
        given or labels.numbered(num_classes),
        named=bool(given),
        mistake=mistake,
    )


def _network(found: _Timm, known: _Pretrained) -> Network:
    arguments = {"in_chans": known.input_size[0]} | found.model_args
    arguments = {
        name: value
        for name, value in arguments.items()
        if value not in (None, _USUAL.get(name)) and not name.startswith(_OF_TRAINING)
    }
    architecture = ARCHITECTURES.get(found.architecture)
    if architecture is None or arguments:
        return Timm(found.architecture, arguments)
    return Ours(found.architecture, architecture)


def _labels(names: _Names, descriptions: _Descriptions) -> tuple[Label, ...]:
    """Read the labels; for a WordNet id, its description becomes the label."""
    ordered = tuple(names[index] for index in sorted(names)) if isinstance(names, dict) else names
    if not isinstance(descriptions, dict):
        descriptions = dict(zip(ordered, descriptions, strict=False))
    return tuple(
        Label(label=labels.printable(descriptions.get(name, name), f"the description of {name}"), wordnet_id=name)
        if re.fullmatch(r"n\d{8}", name)
        else Label(label=labels.printable(name, f"class {index} in its config"))
        for index, name in enumerate(ordered)
    )


def _preprocessing(known: _Pretrained) -> Preprocessing | UnknownPreprocessingError:
    """Describe what `transforms_imagenet_eval` does, at the training size, which timm uses by default."""
    channels, *crop = known.input_size
    mode: CropMode = "squash" if known.crop_mode == "squash" else "pad" if known.crop_mode == "border" else "centre"
    if mode == "centre" and crop[0] != crop[1]:
        return UnknownPreprocessingError(f"timm covers {crop[0]}x{crop[1]} with the image, and cuts off what is over")
    return config.preprocessing(
        {
            "resize": max(math.floor(side / known.crop_pct) for side in crop),
            "crop": tuple(crop),
            "crop_mode": mode,
            "interpolation": known.interpolation,
            "channels": "grey" if channels == 1 else "rgb",
            "mean": _for_each(channels, known.mean),
            "std": _for_each(channels, known.std),
        }
    )


def _for_each(channels: int, values: tuple[float, ...]) -> tuple[float, ...]:
    """Return as many values as there are channels as timm does: those, or their mean for each channel."""
    return values if len(values) == channels else (sum(values) / max(len(values), 1),) * channels
