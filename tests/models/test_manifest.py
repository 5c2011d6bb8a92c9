import json
from typing import Any

import pytest
from pydantic import ValidationError

from models.manifest import Crop, Label, Manifest, Preprocessing
from tests.export.drafts import draft


def preprocessing(**changes: Any) -> Preprocessing:
    usual = {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return Preprocessing.model_validate(usual | changes)


def test_older_manifests_are_squares_of_the_centre_in_rgb() -> None:
    found = preprocessing()
    assert (found.crop, found.crop_mode, found.channels) == ((224, 224), "centre", "rgb")
    assert Preprocessing.model_validate_json(found.model_dump_json()) == found


def test_manifest_that_was_written_before_any_of_it_is_read() -> None:
    known = draft()
    older = json.loads(known.model_dump_json())
    older["preprocessing"] |= {"crop": 32}
    del older["activation"], older["preprocessing"]["crop_mode"], older["preprocessing"]["channels"]
    assert Manifest.model_validate_json(json.dumps(older)) == known


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"crop": (224, 257)}, "crop 224x257 is larger than resize 256"),
        ({"crop": (224, 257), "crop_mode": "squash"}, "larger than resize 256"),
        ({"channels": "grey"}, "mean has 3 values, but grey has 1"),
        ({"std": (1.0,)}, "std has 1 values, but rgb has 3"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be greater than 0"),
        ({"crop": 0}, "greater than or equal to 1"),
        ({"crop": (224, 224, 3)}, "at most 2 items"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValidationError, match=mistake):
        preprocessing(**changes)


@pytest.mark.parametrize(
    ("how", "size", "resized", "centre"),
    [
        # short side to 256, the long one truncated: 256 * 375 / 500 = 341.33
        ({}, (500, 375), (341, 256), (58, 16)),
        ({"crop": (224, 192)}, (375, 500), (256, 341), (32, 58)),
        # squashed to the crop, or to a larger size of which the centre is taken
        ({"crop_mode": "squash", "resize": 224}, (500, 375), (224, 224), (0, 0)),
        ({"crop_mode": "squash", "crop": (256, 128)}, (500, 375), (128, 256), (0, 0)),
        ({"crop_mode": "squash", "crop": (192, 96)}, (500, 375), (128, 256), (16, 32)),
        # fitted into the crop, and the rest filled: 224 - 168 = 56 rows
        ({"crop_mode": "pad", "resize": 224}, (500, 375), (224, 168), (0, -28)),
        ({"crop_mode": "pad", "resize": 224}, (375, 499), (168, 224), (-28, 0)),
        ({"crop_mode": "pad", "resize": 225}, (499, 374), (225, 169), (0, -27)),  # 55 rows: 27 above, 28 below
        ({"crop_mode": "pad", "resize": 448, "crop": (224, 448)}, (100, 100), (224, 224), (-112, 0)),
        ({"crop_mode": "pad", "resize": 224}, (5000, 1), (224, 1), (0, -111)),
    ],
)
def test_image_is_resized_by_the_crop_mode(
    how: dict[str, Any], size: tuple[int, int], resized: tuple[int, int], centre: tuple[int, int]
) -> None:
    found = preprocessing(**how)
    assert found.resized(size) == resized
    assert found.crops(resized) == (Crop(*centre),)


def test_ten_crops_of_what_is_filled_lie_where_the_image_is() -> None:
    """In the dimension where the image is larger than the crop they lie in its corners, in the other in the middle."""
    found = preprocessing(crop_mode="pad", resize=256)
    crops = found.crops((256, 192), 10)
    assert crops[:5] == (Crop(16, -16), Crop(0, -16), Crop(32, -16), Crop(0, -16), Crop(32, -16))
    assert crops[5:] == tuple(crop._replace(mirrored=True) for crop in crops[:5])


@pytest.mark.parametrize(
    ("channels", "mean", "fill"),
    [
        ("rgb", (0.1, 0.5, 1.0), (26, 128, 255)),
        ("bgr", (0.1, 0.5, 1.0), (255, 128, 26)),
        ("grey", (0.1,), (26, 26, 26)),
    ],
)
def test_filling_is_the_mean_colour(channels: str, mean: tuple[float, ...], fill: tuple[int, int, int]) -> None:
    assert preprocessing(channels=channels, mean=mean, std=(0.5,) * len(mean)).fill == fill


def test_one_class_is_never_certain_by_itself() -> None:
    one = draft().model_dump() | {"num_classes": 1, "top_k": 1, "labels": (Label(label="cat"),)}
    with pytest.raises(ValidationError, match="--activation sigmoid"):
        Manifest.model_validate(one)
    assert Manifest.model_validate(one | {"activation": "sigmoid"}).num_classes == 1


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"top_k": 11}, "top_k 11 is more than the 10 classes"),
        ({"num_classes": 9}, "10 labels for 9 classes"),
        ({"features": 64}, "a graph has both or neither"),
        ({"backend": "tensorrt"}, "without a record of TensorRT"),
    ],
)
def test_what_no_model_is_like_is_refused(changes: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValidationError, match=mistake):
        Manifest.model_validate(draft().model_dump() | changes)


def test_file_that_is_bound_to_a_backend_names_no_other() -> None:
    known = draft().model_dump() | {"precision": "bf16"}
    with pytest.raises(ValidationError, match="only openvino runs it as it was meant"):
        Manifest.model_validate(known)
    assert Manifest.model_validate(known | {"backend": "openvino"}).bound_to == "openvino"
    assert draft().bound_to is None
