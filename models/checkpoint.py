"""Checkpoint files: finds the parameters of one network in whatever a training run saved.

A file is a state dict or holds one, under any of several keys, with the prefixes of enclosing modules, beside an
optimizer and losses. If a file holds more than one candidate, the error names them and the option that chooses.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models import foreign, names, reparametrized, shards, unpickling
from models.errors import ExpectedError, first_line

_TRAINED_KEYS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "params")
_AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema")
"""Keys of exponential moving averages: those of timm, of torchvision's training scripts, and of others."""
_ANCHORS = ("layer1.0.conv1.weight", "_conv_stem.weight")
"""Parameters that a network has exactly once; the prefix before one is that of enclosing modules."""
_RENAMED = {"linear": "fc", "shortcut": "downsample"}
"""Names that the published CIFAR checkpoints use for torchvision's."""
_HEADS = ("fc.weight", "_fc.weight")
_MAX_LISTED = 3
_LEVELS = 16
"""How deep mappings are searched for tensors: one that holds itself has no end."""


class CheckpointError(ExpectedError):
    """A checkpoint cannot be read, or does not fit the network."""


def read(
    path: Path, *, averaged: bool = False, key: str | None = None, prefix: str | None = None, head: str | None = None
) -> dict[str, Tensor]:
    """Read the parameters from a .safetensors file or one written by `torch.save`, under our names (`models.names`).

    Args:
        path: a checkpoint, recognised by its content rather than its name; or an index (`models.shards`).
        averaged: read the moving averages instead of the trained parameters.
        key: read what the file holds under this key, or under nested keys: `a.b`.
        prefix: read the parameters whose names begin with this.
        head: name of the last layer, if it is not among these.

    Raises:
        CheckpointError: the file is unreadable, or does not hold the parameters of exactly one network.
    """
    state = names.to_ours(_named_tensors(_content(path), path, averaged=averaged, key=key))
    before = _prefix(state, path, prefix)
    within = [name for name in state if name.startswith(before) and not (head and name.startswith(f"{head}."))]
    network = {_torchvision_name(name.removeprefix(before)): state[name] for name in within}
    if head:
        network |= _head(state, head, path)
    if (last := network.get("fc.weight")) is not None and last.ndim:
        network.setdefault("fc.bias", torch.zeros(len(last)))  # the layer was trained without one
    _flatten_head(network)
    if any(tensor.is_quantized for tensor in network.values()):
        raise CheckpointError(f"{path} {foreign.QUANTISED}")
    if any(anchor in network for anchor in _ANCHORS) and not any(name.startswith(("fc.", "_fc.")) for name in network):
        raise CheckpointError(f"{path} {foreign.network(state) or _without_head(state, before)}")
    return network


def read_as_named(path: Path) -> dict[str, Tensor]:
    """Read the parameters from a file as `read` does, but keep the names in the file.

    Raises:
        CheckpointError: the file is unreadable, or holds no parameters.
    """
    return _named_tensors(_content(path), path, averaged=False, key=None)


def _content(path: Path) -> object:
    """Read a file, or all files that an index names."""
    parts = [_file(part) for part in shards.files(path)]
    if len(parts) == 1:
        return parts[0]
    return {name: value for part in parts if isinstance(part, Mapping) for name, value in part.items()}


def _file(path: Path) -> object:
    """Read a file without running any code in it."""
    try:
        what = foreign.file(path)
        if what is None:
            foreign.check_sums(path)
            return load_file(path) if foreign.is_safetensors(path) else unpickling.load(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except UnpicklingError as error:
        what = _unreadable(str(error))
    except Exception as error:  # a damaged file raises almost anything
        what = f"is cut off or damaged: copy it again ({first_line(error)})"
    raise CheckpointError(f"{path} {what}")


def _unreadable(message: str) -> str:
    """Say what to do if torch's restricted unpickler gives up."""
    if "DTensor" in message:
        return f"holds tensors that are spread over several GPUs (DTensor): {foreign.WHOLE}"
    if "Unsupported operand" in message:
        return "was saved with another pickle_protocol: torch.save its parameters with the default one"
    found = re.search(r"GLOBAL (\S+)", message) or re.search(r"WeightsUnpickler error:\s*(.+)", message)
    reason = found[1] if found else "it is no pickle of torch"
    return f"holds more than can be read without running code: torch.save the network's state_dict() alone ({reason})"


def _named_tensors(content: object, path: Path, *, averaged: bool, key: str | None) -> dict[str, Tensor]:
    """Find the parameters in everything that a training run saved."""
    whole = content = content if key is None else _at(key, content, path)
    if averaged:
        content = _under(_AVERAGED_KEYS, content, path)
    for _ in range(_LEVELS):
        if (inner := _under(_TRAINED_KEYS, content, path)) is None:
            break
        content = inner
    if isinstance(content, Mapping) and not any(isinstance(value, Mapping) for value in content.values()):
        named = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if named:
            try:
                return reparametrized.plain(named)
            except RuntimeError as error:
                reason = first_line(error)
                raise CheckpointError(f"{path} is damaged: its weights cannot be computed ({reason})") from error
    raise CheckpointError(f"{path} {_without_tensors(content, whole, averaged=averaged)}")


def _without_tensors(content: object, whole: object, *, averaged: bool) -> str:
    """Say what the file holds instead of tensors, and how to choose from it."""
    if code := unpickling.stands_for(content):
        return (
            f"is a whole {code}, which only its own code can read: with that code,"
            " torch.save(model.state_dict(), 'weights.pth') writes its parameters"
        )
    if not averaged and (known := foreign.network(_paths(whole))):
        return known
    held = dict(whole) if isinstance(whole, Mapping) else {}
    if any((unpickling.stands_for(value) or "").startswith("numpy.") for value in held.values()):
        return "holds NumPy arrays, not tensors: torch.save a dict of names and torch.from_numpy(array)"
    keys = list(map(str, held))
    what = f"moving averages ({', '.join(_AVERAGED_KEYS)})" if averaged else "named tensors"
    way_out = "save the network's state_dict()"
    if {*keys} & {*_AVERAGED_KEYS}:
        way_out = "--ema takes the moving averages"
    elif full := [f"--key {key}" for key, value in held.items() if isinstance(value, Mapping) and _has_tensors(value)]:
        way_out = f"choose with {' or '.join(full)}"
    return f"holds no {what}{', but ' + _listed(keys) if keys else ''}: {way_out}"


def _at(key: str, content: object, path: Path) -> object:
    """Return what is under a key, or under nested keys: `a.b`."""
    held = {str(name): value for name, value in content.items()} if isinstance(content, Mapping) else {}
    if key in held:
        return held[key]
    first, _, rest = key.partition(".")
    if first not in held:
        there = _listed(list(held)) if held else "nothing"
        raise CheckpointError(f"{path} has nothing under the key {first}, but {there}")
    return _at(rest, held[first], path) if rest else held[first]


def _under(keys: Iterable[str], content: object, path: Path) -> object:
    """Return what a mapping holds under whichever of `keys` it has; None if it has none of them."""
    if not isinstance(content, Mapping):
        return None
    held = [key for key in keys if isinstance(content.get(key), Mapping)]
    full = [key for key in held if _has_tensors(content[key])]
    if len(full) > 1:
        raise _ambiguous(path, full, "--key")
    return content[(full or held)[0]] if held else None


def _prefix(state: Mapping[str, Tensor], path: Path, wanted: str | None) -> str:
    """Find the prefix of the network's names; `wanted` chooses the network if there are several."""
    ends = tuple(f".{anchor}" for anchor in _ANCHORS)
    found = [name[: -len(end) + 1] for name in state for end in ends if f".{name}".endswith(end)]
    if wanted is not None:
        begin = reparametrized.unwrapped(wanted).rstrip(".") + "."
        if not any(name.startswith(begin) for name in state):
            raise CheckpointError(f"{path} has no parameter whose name begins with {begin}, but {_listed(list(state))}")
        found = [prefix for prefix in found if prefix.startswith(begin)] or [begin]
    if len(found) > 1:
        known = foreign.network(state)
        raise CheckpointError(f"{path} {known}") if known else _ambiguous(path, found, "--prefix")
    return found[0] if found else ""


def _ambiguous(path: Path, places: list[str], option: str) -> CheckpointError:
    return CheckpointError(f"{path} holds more than one network: {_listed(places)}: choose with {option} {places[0]}")


def _has_tensors(value: object, levels: int = _LEVELS) -> bool:
    if isinstance(value, Mapping):
        return levels > 0 and any(_has_tensors(inner, levels - 1) for inner in value.values())
    return isinstance(value, Tensor)


def _paths(content: object, before: str = "", levels: int = _LEVELS) -> Iterator[str]:
    """Yield the name of everything in nested mappings: `student.conv1.weight`."""
    if isinstance(content, Mapping) and levels:
        for key, value in content.items():
            yield from _paths(value, f"{before}{key}.", levels - 1)
    else:
        yield before.removesuffix(".")


def _torchvision_name(name: str) -> str:
    return ".".join(_RENAMED.get(part, part) for part in name.split("."))


def _head(state: Mapping[str, Tensor], head: str, path: Path) -> dict[str, Tensor]:
    """Use the layer named `head` as the last one."""
    found = {part: state[f"{head}.{part}"] for part in ("weight", "bias") if f"{head}.{part}" in state}
    if "weight" not in found or found["weight"].ndim < 2:
        raise CheckpointError(f"{path} has no layer {head}; its linear layers: {_listed(_linear(state)) or 'none'}")
    return {f"fc.{part}": tensor.flatten(1) if part == "weight" else tensor for part, tensor in found.items()}


def _linear(state: Mapping[str, Tensor]) -> list[str]:
    """Name the linear layers. No network here has any but its last one."""
    return [name.removesuffix(".weight") for name in state if name.endswith(".weight") and state[name].ndim == 2]


def _without_head(state: Mapping[str, Tensor], before: str) -> str:
    """Say that the last layer is missing, and which layer it may be."""
    linear = _linear(state)
    around = [name for name in state if not name.startswith(before) or name.startswith((*linear,))]
    if len(linear) == 1:
        way_out = f"--head {linear[0]} uses that as the last layer"
    else:
        way_out = "an encoder alone cannot tell classes apart: train a last layer on it, and export the result"
    return f"has no last layer {before}fc.weight{', but ' + _listed(around) if around else ''}: {way_out}"


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
    """Return the number of classes of a checkpoint's last layer; None if it has no such layer."""
    return next((len(state[name]) or None for name in _HEADS if name in state and state[name].ndim), None)


def load(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Copy a checkpoint into a network, as float32; all names and shapes must be the network's, and all values finite.

    `num_batches_tracked` does not matter: old files lack it, and inference does not use it.

    Raises:
        CheckpointError: the checkpoint does not fit or is damaged; the message names `origin` and what differs.
    """
    known = network.state_dict()
    expected = {name: tensor for name, tensor in known.items() if not name.endswith("num_batches_tracked")}
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in known]
    reshaped = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or unexpected or reshaped:
        shapes = [f"{name} {list(state[name].shape)} for {list(expected[name].shape)}" for name in reshaped]
        kinds = {"missing": missing, "unexpected": unexpected, "shape": shapes}
        differences = "; ".join(f"{kind} {_listed(listed)}" for kind, listed in kinds.items() if listed)
        raise CheckpointError(f"{origin} {_other_network(state, {*missing, *unexpected, *reshaped}, differences)}")
    for name in expected:
        if what := _unusable(state[name]):
            raise CheckpointError(f"{origin} {what.format(name)}")
    parameters = {name: state[name].float() for name in expected}
    for name, values in parameters.items():
        if damage := _damage(name, values):
            raise CheckpointError(f"{origin} is damaged: {name} {damage}")
    network.load_state_dict(parameters, strict=False)


def _other_network(state: Mapping[str, Tensor], differing: Set[str], differences: str) -> str:
    """Say which network a checkpoint is of, if that is known, and how it differs."""
    if known := foreign.network(state):
        return known
    of_head = [name for name in differing if name.startswith("fc.")]
    fitting = names.recognise(state) if len(of_head) < len(differing) else ()
    what = f"is of {' or '.join(fitting)}, not a" if fitting else "is no"
    hint = ""
    if all(name.endswith(("running_mean", "running_var")) for name in differing):
        hint = "; without its own means and variances, a batch norm takes those of whatever else is in a batch"
    elif "fc.weight" in of_head and len(of_head) > 2:  # more than a weight and a bias
        hint = f"; a head of several layers is not supported here: {foreign.BY_ONNX}"
    return f"{what} checkpoint of this network: {differences}{hint}"


def _unusable(values: Tensor) -> str | None:
    """Say why a tensor has no floating-point values; {} stands for its name."""
    if values.is_meta:
        return "has the shape of {}, but not its values: it was saved from torch's meta device"
    if values.is_floating_point():
        return None
    return f"has {{}} in {str(values.dtype).removeprefix('torch.')}: give the checkpoint in floating point"


def _damage(name: str, values: Tensor) -> str | None:
    if not values.isfinite().all():
        return "is NaN or infinite in places"
    return "is negative in places" if name.endswith("running_var") and (values < 0).any() else None


def is_untracked(network: nn.Module) -> bool:
    """Whether no batch norm has ever seen data, as in a network that was never trained."""
    found = {name: tensor for name, tensor in network.state_dict().items() if "running_" in name}
    return bool(found) and all((tensor == name.endswith("running_var")).all() for name, tensor in found.items())
