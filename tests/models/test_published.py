"""How the configuration files of published models are understood."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.samples import PHOTOS, pixels
from models import labels, published
from models.architectures import ARCHITECTURES
from models.config import Ours, Published, Timm, Transformers, UnknownPreprocessingError
from models.hub import SourceError
from models.manifest import Label, Preprocessing
from tests.models import libraries
from tests.published import CONVNEXT, IMAGENET_256, RESNET50_A1, RESNET_50, folder, timm_config

HALF = (0.5, 0.5, 0.5)


def read(path: Path, config: Mapping[str, Any] | str, preprocessor: Mapping[str, Any] | None = None) -> Published:
    return published.read(folder(path, config, preprocessor))


def of_timm(path: Path, **pretrained: object) -> Preprocessing | UnknownPreprocessingError:
    return read(path, timm_config("resnet18", 10, **pretrained)).preprocessing


def of_transformers(path: Path, preprocessor: Mapping[str, Any]) -> Preprocessing | UnknownPreprocessingError:
    return read(path, RESNET_50, preprocessor).preprocessing


def test_timms_best_resnet_is_understood(tmp_path: Path) -> None:
    found = read(tmp_path, RESNET50_A1)
    assert found.network == Ours("resnet50", ARCHITECTURES["resnet50"])
    # floor(224 / 0.95); at the training size, which is timm's default
    assert found.preprocessing == IMAGENET_256.model_copy(update={"resize": 235})
    assert (found.activation, found.named, found.labels) == ("softmax", True, labels.imagenet())


def test_transformers_resnet_is_understood(tmp_path: Path) -> None:
    found = read(tmp_path, RESNET_50, CONVNEXT)
    assert found.network == Ours("resnet50", ARCHITECTURES["resnet50"])
    assert found.preprocessing == IMAGENET_256
    assert [label.label for label in found.labels] == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    assert (found.activation, found.named) == ("softmax", True)


@pytest.mark.parametrize(
    ("pretrained", "changes"),
    [
        ({}, {"resize": 235}),
        ({"crop_pct": None, "interpolation": None, "mean": None, "std": None}, {}),
        ({"crop_pct": 1.0, "input_size": [3, 288, 288]}, {"resize": 288, "crop": (288, 288)}),
        ({"interpolation": "bilinear", "mean": HALF}, {"resize": 235, "interpolation": "bilinear", "mean": HALF}),
        ({"crop_mode": "squash", "crop_pct": 1.0}, {"resize": 224, "crop_mode": "squash"}),
        ({"crop_mode": "squash"}, {"resize": 235, "crop_mode": "squash"}),
        ({"crop_mode": "border", "crop_pct": 0.9}, {"resize": 248, "crop_mode": "pad"}),
        (
            {"input_size": [1, 224, 224], "mean": [0.25, 0.5, 0.75], "std": [0.25]},
            {"resize": 235, "channels": "grey", "mean": (0.5,), "std": (0.25,)},
        ),
    ],
)
def test_timms_preprocessing_is_said_in_our_terms(
    pretrained: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    assert of_timm(tmp_path, **pretrained) == IMAGENET_256.model_copy(update=changes)


@pytest.mark.parametrize(
    ("pretrained", "reason"),
    [
        ({"interpolation": "hamming"}, "its interpolation is hamming"),
        ({"input_size": [3, 224, 320]}, "timm covers 224x320 with the image"),
        ({"std": [0, 1, 1]}, "std"),
    ],
)
def test_what_timm_does_and_we_do_not_is_said(pretrained: dict[str, Any], reason: str, tmp_path: Path) -> None:
    found = of_timm(tmp_path, **pretrained)
    assert isinstance(found, UnknownPreprocessingError)
    assert reason in str(found)


@pytest.mark.parametrize(
    ("preprocessor", "changes"),
    [
        ({"size": {"shortest_edge": 224}, "image_processor_type": "ConvNextImageProcessorFast"}, {}),
        ({"size": 384}, {"resize": 384, "crop": (384, 384), "crop_mode": "squash"}),
        ({"crop_pct": 0.95, "resample": 2}, {"resize": 235, "interpolation": "bilinear"}),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        (
            {"do_rescale": False, "image_mean": [127.5, 127.5, 127.5], "image_std": 51},
            {"mean": HALF, "std": (0.2, 0.2, 0.2)},
        ),
    ],
)
def test_convnexts_processor_is_said_in_our_terms(
    preprocessor: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    assert of_transformers(tmp_path, {**CONVNEXT, **preprocessor}) == IMAGENET_256.model_copy(update=changes)


@pytest.mark.parametrize(
    ("preprocessor", "geometry"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 224}, (224, (224, 224), "squash", "bilinear")),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 48}},
            (64, (64, 48), "squash", "bilinear"),
        ),
        ({"image_processor_type": "BitImageProcessor"}, (224, (224, 224), "centre", "bicubic")),
        (
            {"image_processor_type": "BitImageProcessor", "size": 448, "crop_size": {"height": 440, "width": 440}},
            (448, (440, 440), "centre", "bicubic"),
        ),
        ({"image_processor_type": "DeiTImageProcessor"}, (256, (224, 224), "squash", "bicubic")),
        ({"image_processor_type": "BeitFeatureExtractor", "size": 384}, (384, (384, 384), "squash", "bicubic")),
        ({"image_processor_type": "LevitImageProcessor"}, (256, (224, 224), "centre", "bicubic")),
        ({"image_processor_type": "MobileNetV1ImageProcessor"}, (256, (224, 224), "centre", "bilinear")),
        ({"image_processor_type": "EfficientNetImageProcessor"}, (346, (346, 346), "squash", "bicubic")),
        ({"size": {"shortest_edge": 224}}, (256, (224, 224), "centre", "bicubic")),  # as RESNET_50's model_type has it
    ],
)
def test_other_processors_have_their_own_defaults(
    preprocessor: dict[str, Any], geometry: tuple[int, tuple[int, int], str, str], tmp_path: Path
) -> None:
    found = of_transformers(tmp_path, preprocessor)
    assert isinstance(found, Preprocessing)
    assert (found.resize, found.crop, found.crop_mode, found.interpolation) == geometry


@pytest.mark.parametrize(
    ("preprocessor", "reason"),
    [
        ({"image_processor_type": "LlavaImageProcessor"}, "its processor is LlavaImageProcessor"),
        ({**CONVNEXT, "resample": 5}, "its interpolation is hamming"),
        ({**CONVNEXT, "do_resize": False}, "does not make all images the same size"),
        ({"image_processor_type": "BitImageProcessor", "do_center_crop": False}, "does not make all images"),
        ({"image_processor_type": "BitImageProcessor", "crop_size": 256}, "larger than resize"),
        (
            {"image_processor_type": "DeiTImageProcessor", "crop_size": {"height": 224, "width": 192}},
            "in a way supported here",
        ),
    ],
)
def test_what_a_processor_does_and_we_do_not_is_said(preprocessor: dict[str, Any], reason: str, tmp_path: Path) -> None:
    found = of_transformers(tmp_path, preprocessor)
    assert isinstance(found, UnknownPreprocessingError)
    assert reason in str(found)


def test_missing_processor_is_said(tmp_path: Path) -> None:
    found = read(tmp_path, RESNET_50).preprocessing
    assert isinstance(found, UnknownPreprocessingError)
    assert "there is no preprocessor_config.json" in str(found)


@pytest.mark.parametrize(
    ("changes", "network"),
    [
        ({"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}, "resnet18"),
        ({"downsample_in_bottleneck": True}, "resnet50 with stride in the 1x1"),
        (
            {"depths": [1, 1], "hidden_sizes": [64, 128], "embedding_size": 16},
            "resnet of 1-1 bottleneck blocks, 16 wide",
        ),
        ({"hidden_act": "gelu"}, None),
        ({"hidden_sizes": [256, 512, 1024, 1536]}, None),
        ({"downsample_in_first_stage": True}, None),
        ({"model_type": "vit", "hidden_sizes": 3}, None),
    ],
)
def test_transformers_network_is_ours_where_we_define_it(
    changes: dict[str, Any], network: str | None, tmp_path: Path
) -> None:
    found = read(tmp_path, {**RESNET_50, **changes}).network
    assert isinstance(found, Ours if network else Transformers)
    assert found.name == (network or changes.get("model_type", "resnet"))


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        (timm_config("convnext_atto", 10), {}),
        (timm_config("resnet18", 10) | {"model_args": {"stem_width": 32, "drop_rate": 0.2}}, {"stem_width": 32}),
        (timm_config("resnet18", 10, input_size=[1, 224, 224]) | {"model_args": {}}, {"in_chans": 1}),
    ],
)
def test_network_that_we_do_not_define_is_timms(
    config: dict[str, Any], arguments: dict[str, Any], tmp_path: Path
) -> None:
    assert read(tmp_path, config).network == Timm(config["architecture"], arguments)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (timm_config("resnet18", 2) | {"label_names": ["cat", "dog"]}, [Label(label="cat"), Label(label="dog")]),
        (timm_config("resnet18", 2, label_names={"1": "dog", "0": "cat"}), [Label(label="cat"), Label(label="dog")]),
        (
            timm_config("resnet18", 1)
            | {"label_names": ["n01440764"], "label_descriptions": {"n01440764": "tench, Tinca tinca"}},
            [Label(label="tench, Tinca tinca", wordnet_id="n01440764")],
        ),
        (timm_config("resnet18", 2), None),
        (timm_config("resnet18", 1000), None),
        (timm_config("resnet18", 1000, tag="a1_in1k"), list(labels.imagenet())),
        (timm_config("resnet18", 21843, tag="goog_in21k"), None),
        # As timm wrote it before 2022: without nesting.
        ({"architecture": "resnet18", "num_classes": 1, "labels": ["cat"]}, [Label(label="cat")]),
        ({**RESNET_50, "id2label": {"1": "dog", "0": "cat"}}, [Label(label="cat"), Label(label="dog")]),
        ({**RESNET_50, "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, None),
        ({name: value for name, value in RESNET_50.items() if name != "id2label"}, None),
    ],
)
def test_labels_are_names_where_there_are_some(
    config: dict[str, Any], names: list[Label] | None, tmp_path: Path
) -> None:
    found = read(tmp_path, config)
    assert found.named == (names is not None)
    assert list(found.labels) == (names or list(labels.numbered(len(found.labels))))


def test_imagenets_classes_have_their_wordnet_ids(tmp_path: Path) -> None:
    id2label = {str(index): f"{label.label}, and more" for index, label in enumerate(labels.imagenet())}
    assert read(tmp_path, {**RESNET_50, "id2label": id2label}).labels == labels.imagenet()


@pytest.mark.parametrize(
    ("changes", "activation"),
    [
        ({}, "softmax"),
        ({"problem_type": "single_label_classification"}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"id2label": {"0": "defect"}}, "sigmoid"),
    ],
)
def test_independent_classes_have_independent_probabilities(
    changes: dict[str, Any], activation: str, tmp_path: Path
) -> None:
    assert read(tmp_path, {**RESNET_50, **changes}).activation == activation


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("not JSON", "config.json of mine is no JSON"),
        ("[]", "config.json of mine is no JSON object"),
        ("{}", r"neither timm's nor transformers'.*--weights FILE"),
        ({**RESNET_50, "architectures": ["ResNetModel"]}, "mine is no image classifier, but ResNetModel"),
        ({**RESNET_50, "problem_type": "regression"}, "mine is a regression"),
        ({**RESNET_50, "num_channels": 4}, "takes 4 channels"),
        ({**RESNET_50, "depths": "deep"}, "the config of mine is not as its library writes it: depths"),
        (timm_config("resnet18", 3, input_size=[4, 224, 224]), "takes 4 channels"),
        (timm_config("hf-hub:somebody/else", 3), "not as its library writes it: architecture"),
        (timm_config("resnet18", 3, crop_pct=0), "not as its library writes it: crop_pct"),
    ],
)
def test_config_that_says_something_else_is_refused(config: dict[str, Any] | str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message) as raised:
        read(tmp_path / "mine", config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("processor", "arguments"),
    [
        ("ConvNext", {"size": {"shortest_edge": 64}}),
        ("ConvNext", {"size": {"shortest_edge": 384}, "resample": 2}),
        ("Levit", {"size": {"shortest_edge": 84}, "crop_size": {"height": 80, "width": 80}}),
        ("MobileNetV2", {"size": {"shortest_edge": 96}, "crop_size": {"height": 64, "width": 64}}),
        ("EfficientNet", {"size": {"height": 80, "width": 80}, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
        ("ViT", {"size": {"height": 96, "width": 64}, "image_mean": [0.4, 0.5, 0.6]}),
        ("Bit", {"size": {"shortest_edge": 120}, "crop_size": {"height": 64, "width": 80}}),
        (
            "DeiT",
            {"size": {"height": 80, "width": 80}, "crop_size": {"height": 64, "width": 64}, "rescale_factor": 0.01},
        ),
    ],
)
def test_pixels_are_those_of_transformers(processor: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    theirs = getattr(libraries.transformers(), f"{processor}ImageProcessorPil")(**arguments)
    theirs.save_pretrained(tmp_path)
    found = of_transformers(tmp_path, json.loads((tmp_path / "preprocessor_config.json").read_text()))
    assert isinstance(found, Preprocessing)
    # Not a JPEG, which would be decoded at half its size. No crop of 480 x 320 cuts off an odd number of pixels, of
    # which transformers cuts the smaller half on the left, and torchvision and this project the even one.
    photo = tmp_path / "photo.png"
    with Image.open(PHOTOS / "espresso.jpg") as image:
        image.save(photo)
        expected = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = (pixels([photo], found)[0, 0] / 255 - np.array(found.mean)) / np.array(found.std)
    levels = np.abs(ours - expected) * np.array(found.std) * 255
    assert levels.max() < 1.01
    assert levels.mean() < 0.05
