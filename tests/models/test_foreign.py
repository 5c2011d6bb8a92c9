"""Files that are not checkpoints, or not of exportable networks: one sentence says what each is."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import checkpoint, networks
from models.checkpoint import CheckpointError

SELF_SUPERVISED = r"is self-supervised pre-training .* cannot tell classes apart: train a last layer on it"
BY_ONNX = r"export it to ONNX where it was made, and give that file to export/from_onnx\.py"


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    return networks.build("cifar_resnet20", 10, seed=1).state_dict()


def zipped(*members: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for member in members:
            archive.writestr(member, b"")
    return content.getvalue()


def torch_script() -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), content)
    return content.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"is empty: copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102540417\n", r"Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html><head><title>Access denied</title>", r"is a web page"),
        (b'\n<?xml version="1.0"?><Error><Code>AccessDenied</Code>', r"is a web page"),
        (
            b"\x08\x07\x12\x07pytorch\x1a\x062.13.0",
            r"is an ONNX file: export/from_onnx\.py \S+/weights\.\w+ takes it",
        ),
        (b"\x89HDF\r\n\x1a\n\0", r"file of Keras.*from_onnx\.py"),
        (zipped("metadata.json", "config.json", "model.weights.h5"), r"file of Keras.*from_onnx\.py"),
        (b"\x08\x01", r"TensorFlow SavedModel.*tf2onnx.*from_onnx\.py"),
        (b"\x1c\0\0\0TFL3", r"TensorFlow Lite.*tf2onnx.*from_onnx\.py"),
        (b"\x81\xa6params\x81\xa5conv1", rf"Flax network: {BY_ONNX}"),
        (zipped("conv1/kernel.npy"), rf"NumPy arrays.*{BY_ONNX}"),
        (zipped("images/cat.jpg"), r"is an archive: unpack it"),
        (b"\x1f\x8b\x08\0", r"is an archive: unpack it"),
        (b'{"architectures": ["ResNetForImageClassification"]}', r"is JSON text"),
        (pickle.dumps({"model": {"stem.conv1.weight": np.zeros(1)}}), r"pickle that torch\.save did not write"),
        (b"model: resnet50\n", r"is no checkpoint: neither torch\.save nor safetensors wrote it"),
        (torch_script, r"TorchScript.*torch\.jit\.load\('.*weights\.\w+'\)\.state_dict\(\)"),
        (
            zipped("mine/archive_format", "mine/models/model.json"),
            r"torch\.export.*load\('.*weights\.\w+'\)\.state_dict",
        ),
        (zipped("mine/data.pkl", "mine/data/0")[:-30], r"is cut off or damaged: copy it again"),
        # The directory of the archive has a name that is no UTF-8.
        (zipped("mine/\xe9").replace(b"\xc3\xa9", b"\xff\xff"), r"is cut off or damaged: copy it again"),
        (b'\xf8\x29\0\0\0\0\0\0{"conv1.weight":', r"is cut off or damaged: copy it again"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_file_of_something_else_is_told_by_its_bytes(
    tmp_path: Path, name: str, content: bytes | Callable[[], bytes], sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content())
    with pytest.raises(CheckpointError, match=sentence) as caught:
        checkpoint.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder: give a file in it"):
        checkpoint.read(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(CheckpointError, match=r"is a TensorFlow SavedModel: python -m tf2onnx\.convert"):
        checkpoint.read(tmp_path)
    (tmp_path / "saved_model.pb").unlink()
    for name in (".metadata", "__0_0.distcp"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"is a distributed checkpoint: .* dcp_to_torch \S+ weights\.pth"):
        checkpoint.read(tmp_path)


def test_file_that_would_never_end_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="is no regular file"):
        checkpoint.read(tmp_path / "weights.pth")


class Whole(nn.Module):
    """A user's class, pickled with the network."""


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model, "epoch": 3}])
def test_whole_network_is_told_by_its_class(tmp_path: Path, wrap: Callable[[nn.Module], object]) -> None:
    torch.save(wrap(Whole()), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"is a whole tests\.models\.test_foreign\.Whole.*state_dict\(\)"):
        checkpoint.read(tmp_path / "weights.pth")


def without_head(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def changed(state: Mapping[str, Tensor], name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {**state, name: change(state[name].clone())}


def first_is(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill_(0, torch.tensor(0), value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda state: {
                "state_dict": {f"module.encoder_{which}.{name}": state[name] for name in state for which in "qk"}
            },
            SELF_SUPERVISED,
        ),
        (
            lambda state: {
                "student": {"module.backbone.conv1.weight": state["conv1.weight"]},
                "teacher": without_head(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(8, 64)},
            },
            SELF_SUPERVISED,
        ),
        (without_head, r"has no last layer fc\.weight: an encoder alone cannot tell classes apart"),
        (
            lambda state: (
                without_head(state)
                | {f"fc.{at}.{part}": state[f"fc.{part}"] for at in (0, 3) for part in ("weight", "bias")}
            ),
            rf"unexpected fc\.0\.weight.*head of several layers is not supported here: {BY_ONNX}",
        ),
        (lambda state: {**state, "conv1.zero_point": torch.tensor(0)}, r"quantised already.*export/quantize\.py"),
        (lambda state: {"0.4.0.conv1.weight": state["conv1.weight"]}, rf"as fastai builds them.*{BY_ONNX}"),
        (
            lambda state: {**state, "fc.parametrizations.weight.original": state["fc.weight"]},
            r"remove_parametrizations",
        ),
        (lambda _: {"blocks.0.attn.qkv.weight": torch.zeros(3)}, rf"is of a transformer.*{BY_ONNX}"),
        (lambda _: {"features.0.weight": torch.zeros(3)}, rf"network that is not supported here: {BY_ONNX}"),
        (lambda state: state | {"rpn.head.conv.weight": torch.zeros(3)}, "detector of objects"),
        (
            lambda state: {name: tensor for name, tensor in state.items() if "running" not in name},
            r"missing bn1\.running_mean.*takes those of whatever else is in a batch",
        ),
        (
            lambda state: changed(state, "layer2.0.conv1.weight", first_is(float("nan"))),
            r"layer2\.0\.conv1\.weight is NaN",
        ),
        (lambda state: changed(state, "fc.bias", first_is(float("inf"))), r"fc\.bias is NaN or infinite"),
        (lambda state: changed(state, "bn1.running_var", first_is(-1e-3)), r"bn1\.running_var is negative"),
        (
            lambda _: networks.build("cifar_resnet32", 10).state_dict(),
            r"is of cifar_resnet32, not a checkpoint of this",
        ),
    ],
)
def test_network_that_cannot_be_exported_is_told(
    trained: dict[str, Tensor], tmp_path: Path, make: Callable[[dict[str, Tensor]], Any], sentence: str
) -> None:
    torch.save(make(trained), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=sentence) as caught:
        checkpoint.load(networks.build("cifar_resnet20", 10), checkpoint.read(tmp_path / "weights.pth"), "weights.pth")
    assert "\n" not in str(caught.value)
