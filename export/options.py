"""Options that state a network's preprocessing and activation, for every command that exports from a source."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from pydantic import ValidationError

from models.errors import ExpectedError, first_mistake
from models.manifest import Activation, ChannelOrder, CropMode, Interpolation, Preprocessing


class StatedError(ExpectedError):
    """The stated options contradict each other, or one is missing."""


@dataclass(frozen=True)
class Stated:
    """The preprocessing and activation that the user stated; None: not stated."""

    resize: int | None = None
    crop: tuple[int, int] | None = None
    """Height and width."""
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None
    channels: ChannelOrder | None = None
    mean: tuple[float, ...] | None = None
    """For pixels in 0..1, one value per channel in the network's order; a single value applies to all channels."""
    std: tuple[float, ...] | None = None
    activation: Activation | None = None

    def over(self, base: Preprocessing) -> Preprocessing:
        """Return `base` with everything stated put in its place.

        With squash or pad, a stated crop or crop mode sets `resize`, too, unless that is stated. Mean and std are
        reversed if the channels change between RGB and BGR.

        Raises:
            StatedError: the options contradict each other, or need another one.
        """
        found = base.model_dump() | {
            name: value for name, value in asdict(self).items() if value is not None and name != "activation"
        }
        if self.resize is None and (self.crop or self.crop_mode):
            found["resize"] = self._resize(base, found)
        count = 1 if found["channels"] == "grey" else 3
        for name in ("mean", "std"):
            values = found[name]
            if getattr(self, name) is None:
                if len(values) != count:
                    raise StatedError(f"--channels {found['channels']} also needs its own --mean and --std")
                found[name] = values if base.channels == found["channels"] else values[::-1]
            elif len(values) == 1:
                found[name] = values * count
        try:
            return Preprocessing.model_validate(found)
        except ValidationError as error:
            raise StatedError(first_mistake(error)) from error

    def _resize(self, base: Preprocessing, found: dict[str, object]) -> int:
        crop, mode = self.crop or base.crop, found["crop_mode"]
        if mode != "centre":
            return max(crop)
        if base.crop_mode != "centre" or crop != base.crop:
            side = max(crop)
            raise StatedError(
                f"--crop {crop[0]}x{crop[1]} of the centre also needs --resize, the short side after resizing:"
                f" {side} to cut nothing off a square image, {round(side / 0.875)} for the usual ratio of 256 to 224"
            )
        return base.resize


NOTHING = Stated()


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """Add the options that state preprocessing and activation; `stated` reads them."""
    group = parser.add_argument_group(
        "what the network expects", "For your own weights, as they were trained: docs/guides/preprocessing.md."
    )
    group.add_argument(
        "--resize", type=_side, metavar="N", help="short side before the crop (squash, pad: larger side)"
    )
    group.add_argument("--crop", type=_crop, metavar="H|HxW", help="height and width of the network's input")
    group.add_argument("--crop-mode", choices=get_args(CropMode), help="how to fit an image of other proportions")
    group.add_argument("--interpolation", choices=get_args(Interpolation), help="Pillow's filter for resizing")
    group.add_argument("--channels", choices=get_args(ChannelOrder), help="order of the channels that the network sees")
    group.add_argument(
        "--mean",
        type=_level,
        nargs="+",
        metavar="M",
        help="mean of pixels in 0..1, one or one per channel; 104/255 works",
    )
    group.add_argument("--std", type=_level, nargs="+", metavar="S", help="their standard deviation, likewise")
    group.add_argument(
        "--activation",
        choices=get_args(Activation),
        help="softmax: one class per image; sigmoid: each class on its own",
    )


def stated(arguments: argparse.Namespace) -> Stated:
    """Read the options of `add_preprocessing`."""
    given: dict[str, Any] = {}
    for field in fields(Stated):
        value = getattr(arguments, field.name)
        given[field.name] = tuple(value) if isinstance(value, list) else value
    return Stated(**given)


def as_options(preprocessing: Preprocessing, given: Stated = NOTHING) -> str:
    """Write preprocessing as the options that would state it, without those that were `given`."""

    def numbers(values: Sequence[float]) -> str:
        return " ".join(f"{value:.6g}" for value in values)

    known = {
        "resize": str(preprocessing.resize),
        "crop": preprocessing.crop_text,
        "crop_mode": preprocessing.crop_mode,
        "interpolation": preprocessing.interpolation,
        "channels": preprocessing.channels,
        "mean": numbers(preprocessing.mean),
        "std": numbers(preprocessing.std),
    }
    return " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in known.items() if getattr(given, name) is None
    )


def _side(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text} is no number of pixels from 1 to 4096")
    return int(text)


def _crop(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d+([xX]\d+)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text} is no crop: write 224, or 224x192, the height first")
    height, _, width = text.lower().partition("x")
    return _side(height), _side(width or height)


def _level(text: str) -> float:
    try:
        numerator, _, denominator = text.partition("/")
        value = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text} is no number, such as 0.485 or 104/255") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text} is not between 0 and 1, where pixels lie: divide by 255, as in --mean 104/255 --std 1/255"
        )
    return value
