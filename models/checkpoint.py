"""Checkpoint files: from what people save to the parameters of a network.

A file is a state dict or holds one: under the key of whoever trained it, with the prefixes of the modules around the
network, beside an optimizer and losses. What is not certain is refused by name.
"""

import argparse
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models import names
from models.errors import ExpectedError

_TRAINED_KEYS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "params")
_AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema")
"""Exponential moving averages of the parameters: timm, torchvision's training scripts, and what others call them."""
_ANCHORS = ("layer1.0.conv1.weight", "_conv_stem.weight")
"""A parameter that each network has once: what comes before it is the modules around the network."""
_RENAMED = {"linear": "fc", "shortcut": "downsample"}
"""Names that the published CIFAR checkpoints use for torchvision's."""
_HEADS = ("fc.weight", "_fc.weight")
_MAX_LISTED = 3


class CheckpointError(ExpectedError):
    """A checkpoint cannot be read, or is not of this network."""


def read(path: Path, *, averaged: bool = False) -> dict[str, Tensor]:
    """Read the parameters from a .safetensors file or one written by `torch.save`, under our names (`models.names`).

    From a file that holds both, the trained parameters are taken, or with `averaged` their moving averages.

    Raises:
        CheckpointError: it is unreadable, or does not hold the parameters of exactly one network.
    """
    state = names.to_ours(_named_tensors(_content(path), path, averaged=averaged))
    ends = tuple(f".{anchor}" for anchor in _ANCHORS)
    prefixes = [name[: -len(end) + 1] for name in state for end in ends if f".{name}".endswith(end)]
    prefix = _only(prefixes, path) or ""
    network = {_torchvision_name(name.removeprefix(prefix)): state[name] for name in state if name.startswith(prefix)}
    _flatten_head(network)
    around = [name for name in state if not name.startswith(prefix)]
    if around and num_classes(network) is None:
        raise CheckpointError(f"{path} has no last layer {prefix}fc.weight, but {_listed(around)}")
    return network


def _content(path: Path) -> object:
    """Read a file, but run no code that may be in it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with (
            warnings.catch_warnings(action="ignore"),  # torch warns of an odd pickle before it refuses it
            torch.serialization.safe_globals([argparse.Namespace]),  # a training script's options: data, no code
        ):
            return torch.load(path, "cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file raises almost anything
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"{code[1]} in it might run code" if code else (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is damaged, or no checkpoint of plain tensors: copy it again, or save the network's state_dict()"
            f" alone ({reason})"
        ) from error


def _named_tensors(content: object, path: Path, *, averaged: bool) -> Mapping[str, Tensor]:
    """Find the parameters in all that a training run has saved."""
    keys = list(map(str, content)) if isinstance(content, Mapping) else []
    if averaged:
        content = _under(_AVERAGED_KEYS, content, path)
    while (inner := _under(_TRAINED_KEYS, content, path)) is not None:
        content = inner
    if isinstance(content, Mapping) and content and all(map(_is_named_tensor, content.items())):
        return content
    what = f"moving averages ({', '.join(_AVERAGED_KEYS)})" if averaged else "named tensors"
    way_out = "--ema takes the moving averages" if {*keys} & {*_AVERAGED_KEYS} else "save the network's state_dict()"
    raise CheckpointError(f"{path} holds no {what}{', but ' + _listed(keys) if keys else ''}: {way_out}")


def _under(keys: Iterable[str], content: object, path: Path) -> object:
    """Return what a mapping holds under the one of `keys` that it has, None if it has none."""
    if not isinstance(content, Mapping):
        return None
    key = _only([key for key in keys if isinstance(content.get(key), Mapping)], path)
    return None if key is None else content[key]


def _only(places: list[str], path: Path) -> str | None:
    """Return the one place where the network is, None if there is none."""
    if len(places) > 1:
        raise CheckpointError(f"{path} holds more than one network: {_listed(places)}")
    return places[0] if places else None


def _is_named_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _torchvision_name(name: str) -> str:
    return ".".join(_RENAMED.get(part, part) for part in name.split("."))


def _flatten_head(state: dict[str, Tensor]) -> None:
    """Rename `fc.1.weight` and `fc.1.bias` of Sequential(Dropout, Linear), if they are all that the head has."""
    head = [name for name in state if name.startswith("fc.")]
    if len({name.rpartition(".")[0] for name in head}) == 1:
        for name in head:
            state["fc." + name.rpartition(".")[2]] = state.pop(name)


def _listed(names: list[str]) -> str:
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def num_classes(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes that a checkpoint's last layer has, None where it has no such layer."""
    return next((len(state[name]) for name in _HEADS if name in state), None)


def load(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy a checkpoint into a network, as float32; all names and shapes must be the network's.

    Files from before batch norm counted its batches lack `num_batches_tracked`, which inference does not use.

    Raises:
        CheckpointError: naming `origin` and the names and shapes that differ.
    """
    expected = network.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} {list(state[name].shape)} for {list(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    differences = [
        f"{kind} {_listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("shape", reshaped))
        if names
    ]
    if differences:
        raise CheckpointError(f"{origin} is no checkpoint of this network: {'; '.join(differences)}")
    network.load_state_dict(state, strict=False)
