import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import checkpoint, networks
from models.checkpoint import CheckpointError


@pytest.fixture
def network() -> nn.Module:
    return networks.build("cifar_resnet20", 10)


@pytest.fixture
def trained() -> dict[str, Tensor]:
    return networks.build("cifar_resnet20", 10, seed=1).state_dict()


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def assert_same(network: nn.Module, state: dict[str, Tensor]) -> None:
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {"model": {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}},
        lambda state: {name.replace("fc.", "linear."): tensor for name, tensor in state.items()},
    ],
    ids=["plain", "state_dict", "model", "nested and parallel", "linear for fc"],
)
def test_checkpoint_loads_however_it_was_wrapped(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path, wrap: Any
) -> None:
    state = checkpoint.read(saved(wrap(trained), tmp_path / "weights.pth"))
    checkpoint.load(network, state, "weights.pth")
    assert_same(network, trained)


def test_safetensors_loads_as_well(network: nn.Module, trained: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(trained, tmp_path / "weights.safetensors")
    checkpoint.load(network, checkpoint.read(tmp_path / "weights.safetensors"), "weights.safetensors")
    assert_same(network, trained)


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_published_cifar_checkpoint_loads_unchanged(shared: Path, depth: int) -> None:
    path = next((shared / "weights" / "cifar10").glob(f"resnet{depth}-*.th"))
    state = checkpoint.read(path)
    network = networks.build(f"cifar_resnet{depth}", 10)
    checkpoint.load(network, state, path.name)
    loaded = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("batches_tracked")}
    assert loaded.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_number_of_classes_is_read_from_the_last_layer(trained: dict[str, Tensor]) -> None:
    assert checkpoint.num_classes(trained) == 10
    assert checkpoint.num_classes({"conv1.weight": trained["conv1.weight"]}) is None


def test_mismatch_names_what_is_missing_unexpected_and_reshaped(network: nn.Module, trained: dict[str, Tensor]) -> None:
    del trained["bn1.weight"]
    trained["fc.weight"] = torch.zeros(7, 64)
    trained |= {f"head.{index}": torch.zeros(1) for index in range(5)}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(network, trained, "mine.pth")
    assert str(caught.value) == (
        "mine.pth is no checkpoint of this network: missing bn1.weight;"
        " unexpected head.0, head.1, head.2 and 2 more; shape fc.weight [7, 64] for [10, 64]"
    )


def test_other_network_is_told_apart(trained: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"missing layer1\.3"):
        checkpoint.load(networks.build("cifar_resnet32", 10), trained, "resnet20.pth")


class Unpickled:
    """Stands for code in a checkpoint."""


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", pickle.dumps(Unpickled()), b"PK\x03\x04 cut"],
    ids=["empty", "text", "code", "cut"],
)
def test_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, {1: torch.zeros(3)}, {"state_dict": {"fc.weight": [1.0]}}, torch.zeros(3)])
def test_checkpoint_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        checkpoint.read(saved(content, tmp_path / "weights.pth"))


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.read(tmp_path / "weights.pth")
