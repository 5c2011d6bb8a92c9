"""Weights that a state dict holds as what they are computed from, as PyTorch's pruning and normalisation leave them."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Modules that `torch.compile`, FSDP and activation checkpointing put around others, at any depth of a network."""


def _pruned(weight: Tensor, mask: Tensor) -> Tensor:
    return weight * mask


def _weight_norm(length: Tensor, direction: Tensor) -> Tensor:
    axes = [axis for axis in range(direction.ndim) if not length.ndim or length.shape[axis] == 1]
    lengths: Tensor = torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
    return direction * (length / lengths)


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return weight / (left @ weight.flatten(1) @ right)


class _Kind(NamedTuple):
    """How one of torch.nn.utils' functions names the parameters of the weight \\1\\2."""

    first: str
    others: tuple[str, ...]
    weight: Callable[..., Tensor]
    """Computes the weight from all of them."""


_OLD, _NEW = r"((?:.+\.)?)(\w+)", r"((?:.+\.)?)parametrizations\.(\w+)"
_KINDS = (
    _Kind(rf"{_OLD}_orig", (r"\1\2_mask",), _pruned),
    _Kind(rf"{_OLD}_g", (r"\1\2_v",), _weight_norm),
    _Kind(rf"{_NEW}\.original0", (r"\1parametrizations.\2.original1",), _weight_norm),
    _Kind(rf"{_OLD}_orig", (r"\1\2_u", r"\1\2_v"), _spectral_norm),
    _Kind(rf"{_NEW}\.original", (r"\1parametrizations.\2.0._u", r"\1parametrizations.\2.0._v"), _spectral_norm),
)


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights themselves, dense, under names without wrappers inside (`unwrapped`).

    Raises:
        RuntimeError: parameters of one weight do not fit each other.
    """
    found = {unwrapped(name): tensor.to_dense() if _is_sparse(tensor) else tensor for name, tensor in state.items()}
    for name in list(found):
        for kind in _KINDS:
            match = re.fullmatch(kind.first, name)
            parts = [name, *(match.expand(other) for other in kind.others)] if match else []
            if match and all(part in found for part in parts):
                found[match[1] + match[2]] = kind.weight(*(found.pop(part).float() for part in parts))
    return found


def unwrapped(name: str) -> str:
    """Return a name without wrappers inside it; one at its beginning stays, and tells it from what lies beside."""
    first, *rest = name.split(".")
    return ".".join([first, *(part for part in rest if part not in _WRAPPERS)])


def _is_sparse(tensor: Tensor) -> bool:
    return tensor.layout != torch.strided
