import argparse
import os
import pickle
import subprocess
from collections import defaultdict, deque
from datetime import UTC, datetime
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
        lambda state: {
            "state_dict": state,
            "epoch": 3,
            "arch": "resnet20",
            "optimizer": {"param_groups": [{"lr": 0.1}]},
        },
        lambda state: {"model": state, "optimizer": {}, "args": argparse.Namespace(lr=0.1, resume=None)},
        lambda state: {"model": {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}},
        lambda state: {name.replace("fc.", "linear."): tensor for name, tensor in state.items()},
        lambda state: {
            "pytorch-lightning_version": "2.5.0",
            "hyper_parameters": {"lr": 0.1},
            "state_dict": {f"net.{name}": state[name] for name in state} | {"criterion.weight": torch.ones(10)},
        },
        lambda state: {name.replace("fc.", "fc.1."): tensor for name, tensor in state.items()},
    ],
    ids=["plain", "state_dict", "model", "nested and parallel", "linear for fc", "Lightning", "dropout before fc"],
)
def test_checkpoint_loads_however_it_was_wrapped(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path, wrap: Any
) -> None:
    state = checkpoint.read(saved(wrap(trained), tmp_path / "weights.pth"))
    checkpoint.load(network, state, "weights.pth")
    assert_same(network, trained)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_around_parts_of_a_network_do_not_matter(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path, wrapper: str
) -> None:
    wrapped = {name.replace("layer1.", f"layer1.{wrapper}."): tensor for name, tensor in trained.items()}
    for prefix in ("", f"{wrapper}.", f"model.{wrapper}."):
        path = saved({prefix + name: tensor for name, tensor in wrapped.items()}, tmp_path / "weights.pth")
        for chosen in (None, prefix) if prefix else (None,):
            checkpoint.load(network, checkpoint.read(path, prefix=chosen), "weights.pth")
            assert_same(network, trained)


PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "backbone.", "encoder.", "network.resnet.")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=4),
    key=st.sampled_from([None, "state_dict", "model", "model_state_dict", "net"]),
    averages=st.sampled_from([None, "state_dict_ema", "model_ema", "ema_state_dict"]),
    beside=st.sampled_from([{}, {"criterion.weight": torch.ones(10)}, {"n_averaged": torch.tensor(3)}]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    safe=st.booleans(),
)
def test_any_prefixes_in_any_wrapper_load_the_same(
    network: nn.Module,
    trained: dict[str, Tensor],
    tmp_path: Path,
    prefixes: list[str],
    key: str | None,
    averages: str | None,
    beside: dict[str, Tensor],
    dtype: torch.dtype,
    safe: bool,
) -> None:
    prefix = "".join(prefixes)
    state = {
        prefix + name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in trained.items()
    }
    state |= beside if prefix else {}
    path = tmp_path / ("weights.safetensors" if safe else "weights.pth")
    if safe:
        save_file(state, path)
    else:
        ema = {averages: {name: torch.zeros_like(tensor) for name, tensor in state.items()}} if averages else {}
        saved({key: state, "epoch": 3, **ema} if key else state, path)
    checkpoint.load(network, checkpoint.read(path), path.name)
    assert_same(network, trained)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    half = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in trained.items()}
    checkpoint.load(network, checkpoint.read(saved(half, tmp_path / "half.pth")), "half.pth")
    assert network.get_parameter("fc.weight").dtype == torch.float32
    assert torch.equal(network.get_parameter("fc.weight"), half["fc.weight"].float())


def test_any_layout_and_floating_point_type_is_read(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    trained["fc.weight"] = torch.eye(10, 64)
    trained["fc.bias"] = torch.ones(10)
    state = trained | {
        "fc.weight": trained["fc.weight"].to_sparse(),
        "fc.bias": trained["fc.bias"].to(torch.float8_e4m3fn),
        "conv1.weight": trained["conv1.weight"].contiguous(memory_format=torch.channels_last),
        "bn1.num_batches_tracked": torch.tensor(1e6).half(),  # overflows, and is not needed
    }
    checkpoint.load(network, checkpoint.read(saved(state, tmp_path / "weights.pth")), "weights.pth")
    assert_same(network, trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensor: (tensor * 100).to(torch.int8),
            r"has fc\.weight in int8: give the checkpoint in floating point",
        ),
        (lambda tensor: tensor.to("meta"), r"has the shape of fc\.weight, but not its values"),
        (lambda tensor: tensor.double() * 1e300, r"fc\.weight is NaN or infinite"),
        (lambda tensor: tensor[0], r"shape fc\.weight \[64\] for \[10, 64\]"),
        (lambda tensor: tensor[:0], r"shape fc\.weight \[0, 64\] for \[10, 64\]"),
        (lambda tensor: tensor.sum(), r"shape fc\.weight \[\] for \[10, 64\]"),
    ],
)
def test_parameters_without_usable_values_are_named(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path, change: Any, message: str
) -> None:
    path = saved(trained | {"fc.weight": change(trained["fc.weight"])}, tmp_path / "weights.pth")
    state = checkpoint.read(path)
    assert checkpoint.num_classes(state) in (10, 64, None)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(network, state, "weights.pth")


def test_damage_that_torch_reads_over_is_found(trained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(trained, tmp_path / "weights.pth")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"is cut off or damaged: copy it again .*CRC"):
        checkpoint.read(path)


def test_file_without_checksums_is_not_damaged(network: nn.Module, trained: dict[str, Tensor], tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(trained, tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    checkpoint.load(network, checkpoint.read(path), "weights.pth")
    assert_same(network, trained)


def test_file_that_holds_itself_has_an_end(tmp_path: Path) -> None:
    itself: dict[str, object] = {"x": torch.zeros(1)}
    itself["model"] = itself
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        checkpoint.read(saved(itself, tmp_path / "weights.pth"))


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema_state_dict"])
def test_moving_averages_are_read_only_when_asked_for(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path, key: str
) -> None:
    averages = {"n_averaged": torch.tensor(3)} | {f"module.{name}": tensor for name, tensor in trained.items()}
    path = saved({"epoch": 3, key: averages}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"no named tensors, but epoch, {key}: --ema takes the moving averages"):
        checkpoint.read(path)
    checkpoint.load(network, checkpoint.read(path, averaged=True), "weights.pth")
    assert_same(network, trained)


def test_moving_averages_that_are_not_there_are_missed_by_name(trained: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({"model": trained, "epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"no moving averages \(state_dict_ema, .*\), but model, epoch"):
        checkpoint.read(path, averaged=True)


def test_two_networks_in_one_file_are_not_chosen_from(trained: dict[str, Tensor], tmp_path: Path) -> None:
    both = {prefix + name: tensor for prefix in ("student.", "teacher.") for name, tensor in trained.items()}
    with pytest.raises(CheckpointError, match=r"more than one network: student\., teacher\."):
        checkpoint.read(saved({"state_dict": both}, tmp_path / "weights.pth"))
    with pytest.raises(CheckpointError, match="more than one network: state_dict, model"):
        checkpoint.read(saved({"model": trained, "state_dict": trained}, tmp_path / "weights.pth"))


def test_one_of_two_networks_is_chosen(network: nn.Module, trained: dict[str, Tensor], tmp_path: Path) -> None:
    other = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
    both = {f"model.{name}": tensor for name, tensor in other.items()}
    both |= {f"ema_model.module.{name}": tensor for name, tensor in trained.items()}
    path = saved({"state_dict": both, "teacher": {"net": trained}, "model": other}, tmp_path / "weights.pth")
    choices: list[dict[str, Any]] = [
        {"key": "state_dict", "prefix": "ema_model.module."},
        {"key": "state_dict", "prefix": "ema_model"},
        {"key": "teacher"},
        {"key": "teacher.net"},
    ]
    for chosen in choices:
        checkpoint.load(network, checkpoint.read(path, **chosen), "weights.pth")
        assert_same(network, trained)
    with pytest.raises(CheckpointError, match="more than one network: state_dict, model: choose with --key state_dict"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match=r"model\., ema_model\.module\.: choose with --prefix model\."):
        checkpoint.read(path, key="state_dict")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"key": "student"}, r"nothing under the key student, but teacher, 7, a\.b and 1 more"),
        ({"key": "epoch.model"}, "nothing under the key model, but nothing"),
        ({"key": "teacher", "prefix": "net"}, r"no parameter whose name begins with net\., but conv1\.weight, "),
        ({"key": "teacher", "head": "head"}, "no layer head; its linear layers: fc"),
        ({}, "no named tensors, but teacher, 7, a.b and 1 more: choose with --key teacher or --key 7 or --key a.b"),
    ],
)
def test_choice_of_what_is_not_there_names_what_is(
    trained: dict[str, Tensor], tmp_path: Path, chosen: dict[str, Any], message: str
) -> None:
    path = saved({"teacher": trained, 7: trained, "a.b": trained, "epoch": 3}, tmp_path / "weights.pth")
    for key in ("teacher", "7", "a.b"):
        assert checkpoint.read(path, key=key).keys() == trained.keys()
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(path, **chosen)


def test_last_layer_of_another_name_is_chosen(network: nn.Module, trained: dict[str, Tensor], tmp_path: Path) -> None:
    state = {f"encoder.{name}": tensor for name, tensor in trained.items() if not name.startswith("fc.")}
    state |= {f"top.{part}": trained[f"fc.{part}"] for part in ("weight", "bias")}
    path = saved(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="--head top uses that as the last layer"):
        checkpoint.read(path)
    checkpoint.load(network, checkpoint.read(path, head="top"), "weights.pth")
    assert_same(network, trained)


def test_last_layer_of_another_name_may_lie_within_the_network(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    state = {name.replace("fc.", "classifier."): tensor for name, tensor in trained.items()}
    path = saved(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="--head classifier uses that as the last layer"):
        checkpoint.read(path)
    checkpoint.load(network, checkpoint.read(path, head="classifier"), "weights.pth")
    assert_same(network, trained)


def test_last_layer_without_a_bias_has_one_of_zeros(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path
) -> None:
    del trained["fc.bias"]
    checkpoint.load(network, checkpoint.read(saved(trained, tmp_path / "weights.pth")), "weights.pth")
    assert not network.get_parameter("fc.bias").any()


def test_network_whose_batch_norms_saw_no_data_is_known(network: nn.Module) -> None:
    assert checkpoint.is_untracked(network)
    network.get_buffer("bn1.running_mean").fill_(0.1)
    assert not checkpoint.is_untracked(network)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            {"fc.0.weight": (64, 64), "fc.2.weight": (10, 64)},
            r"missing fc\.weight.*unexpected fc\.0\.weight, fc\.2\.weight",
        ),
        ({"fc.mlp.a.weight": (10, 64)}, r"missing fc\.bias"),
    ],
)
def test_head_of_several_layers_is_refused_by_name(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path, head: dict[str, tuple[int, ...]], message: str
) -> None:
    body = {name: tensor for name, tensor in trained.items() if not name.startswith("fc.")}
    state = body | {name: torch.zeros(shape) for name, shape in head.items()}
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(network, checkpoint.read(saved(state, tmp_path / "weights.pth")), "weights.pth")


def test_head_outside_the_backbone_is_refused_by_name(trained: dict[str, Tensor], tmp_path: Path) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in trained.items() if not name.startswith("fc.")}
    state |= {"top.weight": trained["fc.weight"], "top.bias": trained["fc.bias"]}
    with pytest.raises(CheckpointError, match=r"no last layer backbone\.fc\.weight, but top\.weight, top\.bias"):
        checkpoint.read(saved(state, tmp_path / "weights.pth"))


class Runs:
    """Makes a checkpoint call code when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        function, *arguments = self._call
        return function, tuple(arguments)


class Options(dict[str, object]):
    """A training script's own mapping type for its options."""


def options() -> Options:
    made = Options(lr=0.1)
    made.frozen = True  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("zipped", [True, False])
def test_what_lies_beside_the_parameters_does_not_matter(
    network: nn.Module, trained: dict[str, Tensor], tmp_path: Path, zipped: bool
) -> None:
    beside = [
        np.float64(71.2),
        np.arange(3.0),
        np.dtype("float32"),
        Path("/data/x"),
        PureWindowsPath("C:/data"),
        defaultdict(list, {"loss": [1.0, 2.0]}),
        deque([1.0, 2.0], maxlen=3),
        datetime(2026, 1, 1, tzinfo=UTC),
        argparse.Namespace(lr=0.1, out=Path("out")),
        options(),
        torch.nn.functional.relu,
        range(3),
    ]
    if zipped:
        beside.append(nn.CrossEntropyLoss())  # before its zip format, torch stored the source of modules
    path = tmp_path / "weights.pth"
    content = {"epoch": 3, "params": beside[5], "model": trained, "config": dict(enumerate(beside))}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    checkpoint.load(network, checkpoint.read(path), "weights.pth")
    assert_same(network, trained)


def test_code_in_a_checkpoint_is_not_run(network: nn.Module, trained: dict[str, Tensor], tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    code = [Runs(exec, f"open({str(harm)!r}, 'w')"), Runs(subprocess.run, ["touch", str(harm)])]
    path = saved({"model": trained, "args": code}, tmp_path / "weights.pth")
    checkpoint.load(network, checkpoint.read(path), "weights.pth")
    assert_same(network, trained)
    assert not harm.exists()


def test_code_that_torch_blocks_is_named_and_not_run(trained: dict[str, Tensor], tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    path = saved({"model": trained, "args": Runs(os.system, f"touch {harm}")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"save the network's state_dict\(\) alone \(\w+\.system\)"):
        checkpoint.read(path)
    assert not harm.exists()


def test_pickle_that_torch_cannot_read_alone_is_told(trained: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(trained, tmp_path / "weights.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="with another pickle_protocol"):
        checkpoint.read(tmp_path / "weights.pth")


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


def test_arrays_and_tensors_of_several_gpus_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved({"conv1.weight": np.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"holds NumPy arrays, not tensors: .*torch\.from_numpy"):
        checkpoint.read(path)

    def load(*_arguments: object, **_options: object) -> None:
        raise pickle.UnpicklingError("``torch.distributed.tensor`` must be imported to load DTensors")  # torch's words

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(CheckpointError, match=r"spread over several GPUs \(DTensor\).*full_state_dict=True"):
        checkpoint.read(path)


@pytest.mark.parametrize("content", [{}, {1: torch.zeros(3)}, {"state_dict": {"fc.weight": [1.0]}}, torch.zeros(3)])
def test_checkpoint_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        checkpoint.read(saved(content, tmp_path / "weights.pth"))


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.read(tmp_path / "weights.pth")
