"""Models from the hub and from folders are imported so that they answer as in their own libraries."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from export import convert, repository, to_onnx
from export.options import Stated
from export.parameters import PublishedFile
from export.recipe import RecipeError, plan
from export.reference import reference_logits
from export.samples import PHOTOS, image_paths
from models import checkpoint, labels, manifest, networks
from models.architectures import Architecture
from models.errors import ExpectedError
from models.hub import SHARDED
from models.libraries import LibraryError
from models.manifest import Manifest
from tests.conftest import run_to_onnx
from tests.export.drafts import MODEL, draft
from tests.hub import Hub
from tests.models import libraries
from tests.published import CONVNEXT, RESNET_50, folder, timm_config
from tests.reference import reference_pixels

TINY = Architecture((1, 1), "bottleneck", width=16)
SMALL: Mapping[str, Any] = {
    **RESNET_50,
    "depths": [1, 1],
    "hidden_sizes": [64, 128],
    "embedding_size": 16,
    "id2label": {"0": "cat", "1": "coffee", "2": "rocket"},
}
"""That network, as transformers describes it."""
ONE: Mapping[str, Any] = {**SMALL, "id2label": {"0": "cat"}}
SIDE_64 = {**CONVNEXT, "size": {"shortest_edge": 64}}


def tiny_state() -> dict[str, torch.Tensor]:
    return libraries.trained(networks.build(TINY, 3))


def files(config: Mapping[str, Any] = SMALL, preprocessor: Mapping[str, Any] = SIDE_64) -> dict[str, bytes]:
    """A published model of three classes."""
    return {
        "README.md": b"# Tiny",
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(preprocessor).encode(),
        "model.safetensors": save(tiny_state()),
    }


def write(path: Path, content: Mapping[str, bytes]) -> Path:
    path.mkdir(exist_ok=True)
    for name, data in content.items():
        (path / name).write_bytes(data)
    return path


def test_model_of_the_hub_is_exported_once_and_found_again_without_the_hub(
    hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = files()
    commit = hub_server.push("somebody/Tiny_ResNet.v1", content)
    arguments = ["hf:somebody/Tiny_ResNet.v1", "--repository", str(tmp_path / "repository")]
    assert to_onnx.main(arguments) == 0, capsys.readouterr().err
    known = manifest.read(tmp_path / "repository" / "tiny_resnet.v1" / "1")
    assert known.weights.source == f"hf:somebody/Tiny_ResNet.v1@{commit}/model.safetensors"
    assert [label.label for label in known.labels] == ["cat", "coffee", "rocket"]
    assert known.preprocessing.model_dump() == {
        "resize": 73,
        "crop": (64, 64),
        "crop_mode": "centre",
        "interpolation": "bicubic",
        "channels": "rgb",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    assert known.parity is not None

    # Another process, in which the hub's environment variables take effect.
    done = run_to_onnx(*arguments, env={"HF_ENDPOINT": hub_server.url, "HF_HUB_CACHE": str(tmp_path / "hf" / "hub")})
    again = "tiny_resnet.v1 is already exported as version 1"
    assert (done.returncode, done.stderr) == (0, "")
    assert again in done.stdout
    asked = len(hub_server.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert to_onnx.main(arguments) == 0
    assert again in capsys.readouterr().out
    assert len(hub_server.requests) == asked
    assert len([request for request in hub_server.requests if request.startswith("GET /cdn")]) == 1


def test_other_commands_take_what_is_exported_of_a_source(hub_server: Hub, tmp_path: Path) -> None:
    source = "hf:somebody/tiny"
    hub_server.push("somebody/tiny", files())
    recipe = plan(source)
    assert convert.name_of(source) == recipe.name == "tiny"
    published = publish(tmp_path, recipe.fingerprint())
    publish(tmp_path, "0" * 64)
    assert convert.find_or_export(tmp_path, source, tmp_path) == published
    assert not any(request.startswith("GET /cdn") for request in hub_server.requests)
    assert convert.find_or_export(tmp_path, "tiny", tmp_path).version == 2


def publish(root: Path, fingerprint: str) -> Manifest:
    return repository.publish(root, draft(name="tiny").model_copy(update={"fingerprint": fingerprint}), MODEL)


def test_commits_of_a_model_are_told_apart(hub_server: Hub) -> None:
    first = hub_server.push("somebody/tiny", files())
    hub_server.push("somebody/tiny", files())
    recipes = [plan("hf:somebody/tiny"), plan(f"hf:somebody/tiny@{first}")]
    assert recipes[0].fingerprint() != recipes[1].fingerprint()


def test_folder_is_told_apart_by_its_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mine", files())
    monkeypatch.chdir(tmp_path)
    recipes = [plan(name) for name in ("./mine", "mine", f"{tmp_path}/mine")]
    assert {recipe.name for recipe in recipes} == {"mine"}
    assert len({recipe.fingerprint() for recipe in recipes}) == 1
    before = recipes[0].fingerprint()
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"others")
    assert plan("./mine").fingerprint() != before


def test_name_of_the_zoo_is_not_that_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "resnet18", files())
    monkeypatch.chdir(tmp_path)
    assert plan("resnet18", random=True).num_classes == 1000
    assert plan("./resnet18").num_classes == 3


def test_what_is_stated_goes_over_what_a_model_says(tmp_path: Path) -> None:
    source = str(write(tmp_path / "mine", files()))
    recipe = plan(source, stated=Stated(interpolation="bilinear", mean=(0.5, 0.5, 0.5), activation="sigmoid"))
    found = recipe.preprocessing
    assert (found.resize, found.interpolation, found.mean, found.std[0]) == (73, "bilinear", (0.5, 0.5, 0.5), 0.229)
    assert recipe.activation == "sigmoid"


def test_pickle_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    content = files()
    del content["model.safetensors"]
    source = write(tmp_path / "mine", content)
    torch.save(tiny_state(), source / "pytorch_model.bin")
    with pytest.raises(RecipeError, match=r"only the pickle pytorch_model\.bin: .*--allow-pickle"):
        plan(str(source))
    recipe = plan(str(source), allow_pickle=True)
    assert isinstance(recipe.parameters, PublishedFile)
    assert recipe.parameters.name == "pytorch_model.bin"
    weights_file = recipe.obtain_weights(tmp_path)
    assert torch.equal(recipe.build(weights_file).get_parameter("fc.weight"), tiny_state()["fc.weight"])
    (source / "model.safetensors").write_bytes(save(tiny_state()))
    assert plan(str(source), allow_pickle=True).obtain_weights(tmp_path) == source / "model.safetensors"


def sharded(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """The parameters in two files, and their index."""
    found, parts = dict(files()), [dict(list(state.items())[half::2]) for half in (0, 1)]
    del found["model.safetensors"]
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    return found | dict(zip(names, map(save, parts), strict=True)) | {SHARDED: json.dumps(index).encode()}


def test_parameters_in_several_files_are_fetched_and_told_apart_by_all_of_them(hub_server: Hub, tmp_path: Path) -> None:
    state, content = tiny_state(), sharded(tiny_state())
    commit = hub_server.push("somebody/large", content)
    of_hub = plan("hf:somebody/large")
    file = of_hub.obtain_weights(tmp_path)
    assert file is not None
    assert of_hub.parameters.describe(file).source == f"hf:somebody/large@{commit}/{SHARDED}"  # type: ignore[call-arg]
    folder = write(tmp_path / "mine", content)
    for built in (of_hub.build(file), plan(str(folder)).build(folder / SHARDED)):
        assert all(torch.equal(value, state[name]) for name, value in built.state_dict().items())
    before = plan(str(folder)).fingerprint()
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"others")
    assert plan(str(folder)).fingerprint() != before
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ExpectedError, match=r"model-00002-of-00002\.safetensors: No such file"):
        plan(str(folder)).fingerprint()


@pytest.mark.parametrize("index", ["{}", "[]", "?", '{"weight_map": {}}', '{"weight_map": {"a": "../secret"}}'])
def test_index_that_is_none_is_one_line(index: str, tmp_path: Path) -> None:
    (tmp_path / SHARDED).write_text(index)
    with pytest.raises(ExpectedError, match=r"is no index of safetensors|files that lie beside it"):
        checkpoint.read(tmp_path / SHARDED)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_own_weights_may_be_in_several_files(suffix: str, tmp_path: Path) -> None:
    state = networks.build("cifar_resnet20", 10, seed=1).state_dict()
    places = {name: f"model-0000{1 + at % 2}-of-00002{suffix}" for at, name in enumerate(state)}
    for file in {*places.values()}:
        part = {name: state[name] for name in state if places[name] == file}
        torch.save(part, tmp_path / file) if suffix == ".bin" else (tmp_path / file).write_bytes(save(part))
    index = tmp_path / f"mine{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    built = plan("cifar_resnet20", checkpoint=index).build(index)
    assert all(torch.equal(value, state[name]) for name, value in built.state_dict().items())
    with pytest.raises(ExpectedError, match=r"is one of several files: give the index beside it, \*\.index\.json"):
        plan("cifar_resnet20", checkpoint=tmp_path / f"model-00001-of-00002{suffix}")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**RESNET_50, "id2label": {"1": "cat", "2": "dog", "4": "cow"}}, r"does not number its classes from 0"),
        ({**RESNET_50, "id2label": {"0": "cat", "1": "d\0g", "2": "cow"}}, r"class 1 in its id2label has .* U\+0000"),
        (timm_config("resnet18", 3) | {"label_names": ["cat", "dog"]}, "2 labels for 3 classes"),
    ],
)
def test_names_that_cannot_be_used_are_told_and_may_be_given(
    config: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "mine", files(config))
    with pytest.raises(ExpectedError, match=f"mine .*{message}.*: name its 3 classes with --labels FILE"):
        plan(str(source))
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\n")
    recipe = plan(str(source), labels_file=tmp_path / "names.txt")
    assert [label.label for label in recipe.labels] == ["cat", "dog", "cow"]


def test_classes_without_names_are_numbered_and_said_to_be(
    tmp_path: Path, labels_of_seven: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(folder(tmp_path / "mine", timm_config("resnet18", 7)).path)
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"")
    recipe = plan(source)
    assert recipe.labels == labels.numbered(7)
    assert recipe.notes == ("mine names none of its 7 classes, so they are numbered: --labels FILE names them",)
    named = plan(source, labels_file=labels_of_seven)
    assert (named.labels[6].label, named.notes) == ("kind 6", ())
    to_onnx.main([source, "--repository", str(tmp_path / "repository")])
    assert recipe.notes[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"random": True}, "mine defines its own network and weights: --weights, --random-weights"),
        ({}, {"checkpoint": Path("mine.pth")}, "defines its own network and weights"),
        ({}, {"num_classes": 4}, "mine has 3 classes, not 4"),
        ({"model.safetensors": None}, {}, r"mine has no model\.safetensors, but README\.md, config\.json"),
        ({"preprocessor_config.json": None}, {}, r"does not state its preprocessing.*--resize, --crop"),
        (
            {"preprocessor_config.json": None},
            {"stated": Stated(resize=64, crop=(64, 64), interpolation="bicubic")},
            "state it with",
        ),
        ({"config.json": json.dumps(ONE).encode()}, {"stated": Stated(activation="softmax")}, "softmax of one class"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said(
    changes: Mapping[str, bytes | None], arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = {name: data for name, data in {**files(), **changes}.items() if data is not None}
    with pytest.raises(RecipeError, match=message):
        plan(str(write(tmp_path / "mine", content)), **arguments)


def test_preprocessing_that_is_stated_whole_needs_no_config(tmp_path: Path) -> None:
    content = files()
    del content["preprocessor_config.json"]
    half = (0.5, 0.5, 0.5)
    stated = Stated(64, (64, 64), "squash", "bilinear", mean=half, std=half)
    found = plan(str(write(tmp_path / "mine", content)), stated=stated).preprocessing
    assert (found.crop_mode, found.interpolation, found.mean, found.std) == ("squash", "bilinear", half, half)


def test_names_of_the_hub_become_names_of_the_repository(tmp_path: Path) -> None:
    for given, name in (("ResNet-50 (mine)", "resnet-50-mine-"), ("..Ünder", "nder"), ("---", "model")):
        assert plan(str(write(tmp_path / given, files()))).name == name


def test_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    source = write(tmp_path / "mine", files(timm_config("convnext_atto", 3)))
    recipe = plan(str(source))
    with pytest.raises(LibraryError, match=r"convnext_atto is a network that only timm defines.*\.\[timm\]"):
        recipe.build(recipe.obtain_weights(tmp_path))


def test_config_decides_nothing_but_the_network(tmp_path: Path) -> None:
    libraries.timm()
    config = timm_config("test_resnet", 3) | {"model_args": {"pretrained": True}}
    recipe = plan(str(write(tmp_path / "mine", files(config))))
    with pytest.raises(LibraryError, match=r"does not build test_resnet: .*multiple values for keyword.*pretrained"):
        recipe.build(recipe.obtain_weights(tmp_path))


def photos_with_logits(network: nn.Module, processor: Any, path: Path) -> None:
    """Photos, with the logits of the library's own pipeline beside each."""
    path.mkdir()
    for photo in image_paths(PHOTOS):
        with Image.open(photo) as image:
            image.save(path / f"{photo.stem}.png")
            inputs = torch.from_numpy(processor(image, return_tensors="np")["pixel_values"])
        with torch.inference_mode():
            np.save(path / f"{photo.stem}.npy", network(inputs).logits.numpy())


@pytest.mark.parametrize("hidden_sizes", [(64, 128), (64, 96)], ids=["our definition", "transformers'"])
def test_transformers_network_answers_as_its_own_pipeline(
    hidden_sizes: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = libraries.transformers()
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=hidden_sizes, depths=(1, 1), num_labels=3, downsample_in_bottleneck=True
    )
    network = transformers.ResNetForImageClassification(config)
    libraries.trained(network)
    processor = transformers.ViTImageProcessorPil(size={"height": 64, "width": 80})
    for one in (network, processor):
        one.save_pretrained(tmp_path / "mine")
    photos_with_logits(network, processor, tmp_path / "photos")
    arguments = [str(tmp_path / "mine"), "--repository", str(tmp_path), "--name", "as-mine"]
    assert to_onnx.main([*arguments, "--expect", str(tmp_path / "photos")]) == 0, capsys.readouterr().err
    known = manifest.read(tmp_path / "as-mine" / "1")
    assert known.expectation is not None
    assert (known.expectation.images, known.expectation.top1_agreement) == (3, 1.0)
    assert known.expectation.logit_error < 0.01
    assert ("transformers" in known.tools) == (hidden_sizes == (64, 96))


TRANSFORMER: dict[str, int] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 32,
    "num_labels": 3,
}


def check_it_answers_as_saved(network: Any, folder: Path) -> None:
    """Save a network of transformers, whose config is TRANSFORMER, and build it as an export does."""
    network.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "size": 32}')
    built = plan(str(folder)).build(folder / "model.safetensors")
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(built(images), network(images).logits, atol=1e-6)


def test_names_of_earlier_versions_of_transformers_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = libraries.transformers()
    source = tmp_path / "mine"
    check_it_answers_as_saved(transformers.ViTForImageClassification(transformers.ViTConfig(**TRANSFORMER)), source)
    arguments = ["--resize", "48", "--crop", "48", "--repository", str(tmp_path / "models")]
    assert to_onnx.main([str(source), *arguments]) == 1
    assert "vit of transformers does not take images of 48x48: " in capsys.readouterr().err
    (source / "model.safetensors").write_bytes(save({"vit.x": torch.ones(1)}))
    with pytest.raises(ExpectedError, match=r"model\.safetensors"):
        plan(str(source)).build(source / "model.safetensors")


def test_a_network_with_two_heads_of_which_one_learned_from_a_teacher_is_a_classifier(tmp_path: Path) -> None:
    transformers = libraries.transformers()
    config = transformers.DeiTConfig(**TRANSFORMER)
    check_it_answers_as_saved(transformers.DeiTForImageClassificationWithTeacher(config), tmp_path)


def test_timms_network_answers_as_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timm = libraries.timm()
    network = timm.create_model(
        "test_resnet", num_classes=3, pretrained_cfg_overlay={"input_size": (3, 64, 64), "crop_pct": 0.9}
    )
    libraries.trained(network)
    timm.models._hub.save_for_hf(network, tmp_path / "mine", safe_serialization=True)
    assert to_onnx.main([str(tmp_path / "mine"), "--repository", str(tmp_path)]) == 0, capsys.readouterr().err
    known = manifest.read(tmp_path / "mine" / "1")
    assert known.architecture == "test_resnet of timm"
    assert known.tools["timm"] == timm.__version__
    assert (known.preprocessing.resize, known.preprocessing.crop) == (71, (64, 64))
    assert known.parity is not None


def test_network_that_the_file_fits_but_is_another_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anti-aliasing has no parameters, as in timm's resnetaa50 and resnetblur50: only the answers reveal it."""
    theirs = networks.build(replace(TINY, anti_aliasing="mean"), 3)
    theirs.load_state_dict(tiny_state())
    source = str(write(tmp_path / "mine", files()))
    preprocessing = plan(source).preprocessing
    pixels = np.stack([reference_pixels(path, preprocessing) for path in image_paths(PHOTOS)])
    np.save(tmp_path / "logits.npy", reference_logits(theirs, pixels, preprocessing))
    arguments = [source, "--expect", str(tmp_path / "logits.npy"), "--repository", str(tmp_path / "repository")]
    assert to_onnx.main(arguments) == 1
    assert "this is not the model of logits.npy" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()
