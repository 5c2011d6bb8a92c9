"""Checkpoint files: from what people save to the parameters of a network."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import ExpectedError

_WRAPPERS = ("state_dict", "model")
_RENAMED = {"linear": "fc", "shortcut": "downsample"}
"""Names that the published CIFAR checkpoints use for torchvision's."""
_HEADS = ("fc.weight", "_fc.weight")
_MAX_LISTED = 3


class CheckpointError(ExpectedError):
    """A checkpoint cannot be read, or is not of this network."""


def read(path: Path) -> dict[str, Tensor]:
    """Read the parameters from a .safetensors file or one written by `torch.save`, under torchvision's names.

    Raises:
        CheckpointError: it is unreadable or holds something other than named tensors.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of an odd pickle before it refuses it
            content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file raises almost anything
        raise CheckpointError(
            f"{path} is no checkpoint of plain tensors: save the network's state_dict() ({_first_line(error)})"
        ) from error
    while isinstance(content, Mapping) and (wrapper := next((key for key in _WRAPPERS if key in content), None)):
        content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(map(_is_named_tensor, content.items())):
        raise CheckpointError(f"{path} holds no named tensors: save the network's state_dict()")
    return {_torchvision_name(name): tensor for name, tensor in content.items()}


def _is_named_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _torchvision_name(name: str) -> str:
    return ".".join(_RENAMED.get(part, part) for part in name.removeprefix("module.").split("."))


def num_classes(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes that a checkpoint's last layer has, None where it has no such layer."""
    return next((len(state[name]) for name in _HEADS if name in state), None)


def load(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy a checkpoint into a network; all names and shapes must be the network's.

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
        f"{kind} {', '.join(names[:_MAX_LISTED])}"
        + (f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else "")
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("shape", reshaped))
        if names
    ]
    if differences:
        raise CheckpointError(f"{origin} is no checkpoint of this network: {'; '.join(differences)}")
    network.load_state_dict(state, strict=False)
