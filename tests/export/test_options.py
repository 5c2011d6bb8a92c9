import argparse
from typing import Any

import pytest

from export.options import NOTHING, Stated, StatedError, add_preprocessing, as_options, stated
from models.manifest import Preprocessing
from models.zoo import IMAGENET_MEAN, IMAGENET_STD

BASE = Preprocessing(resize=256, crop=224, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)


def read(line: str) -> Stated:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("network", nargs="?")
    add_preprocessing(parser)
    return stated(parser.parse_args(line.split()))


def over(line: str, base: Preprocessing = BASE) -> dict[str, Any]:
    """The fields in which stated options differ from the base."""
    found, known = read(line).over(base).model_dump(), base.model_dump()
    return {name: value for name, value in found.items() if value != known[name]}


def test_nothing_stated_changes_nothing() -> None:
    assert read("resnet50") == NOTHING
    assert NOTHING.over(BASE) == BASE
    assert read("--activation sigmoid").over(BASE) == BASE  # not part of preprocessing


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("--resize 240", {"resize": 240}),
        ("--resize 300 --crop 288", {"resize": 300, "crop": (288, 288)}),
        ("--resize 256 --crop 224x192", {"crop": (224, 192)}),
        ("--crop-mode squash", {"crop_mode": "squash", "resize": 224}),
        ("--crop-mode squash --crop 384", {"crop_mode": "squash", "resize": 384, "crop": (384, 384)}),
        ("--crop-mode pad --crop 256x128", {"crop_mode": "pad", "crop": (256, 128)}),
        ("--interpolation lanczos", {"interpolation": "lanczos"}),
        ("--mean 0.5 0.5 0.5 --std 0.25", {"mean": (0.5,) * 3, "std": (0.25,) * 3}),
        ("--channels bgr", {"channels": "bgr", "mean": IMAGENET_MEAN[::-1], "std": IMAGENET_STD[::-1]}),
        (
            "--channels bgr --mean 103.939/255 0.5 123/255 --std 1/255",
            {"channels": "bgr", "mean": (103.939 / 255, 0.5, 123 / 255), "std": (1 / 255,) * 3},
        ),
        ("--channels grey --mean 0.5 --std 0.5", {"channels": "grey", "mean": (0.5,), "std": (0.5,)}),
    ],
)
def test_what_is_stated_replaces_what_is_known(line: str, changes: dict[str, Any]) -> None:
    assert over(line) == changes


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("--crop 384", "--crop 384x384 of the centre also needs --resize.*: 384 .*439"),
        ("--resize 200", "crop 224x224 is larger than resize 200"),
        ("--channels grey", "--channels grey also needs its own --mean and --std"),
        ("--mean 0.5 0.5", "mean has 2 values, but rgb has 3"),
        ("--std 0", "std must be greater than 0"),
    ],
)
def test_what_does_not_go_together_is_refused(line: str, mistake: str) -> None:
    with pytest.raises(StatedError, match=mistake):
        over(line)


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("--mean 123.675 116.28 103.53", "123.675 is not between 0 and 1.*divide by 255"),
        ("--mean x", "x is no number"),
        ("--std 1/0", "1/0 is no number"),
        ("--crop 224,192", "write 224, or 224x192"),
        ("--crop 5000", "from 1 to 4096"),
        ("--resize 0", "from 1 to 4096"),
    ],
)
def test_numbers_that_are_none_are_said_to_be(line: str, mistake: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=mistake):
        read(line)


def test_description_states_the_same_again() -> None:
    squashed = read("--crop-mode squash --crop 128x64 --channels bgr --mean 0.4 0.5 0.6 --std 0.25").over(BASE)
    assert read(as_options(squashed)).over(BASE) == squashed
