"""Other people's networks, as their own libraries define them, to compare ours with.

The libraries are installed without their dependencies: this module has stand-ins for what they import.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def timm() -> ModuleType:
    """timm, with meaningless names in place of torchvision, which it imports for images and data sets."""
    modules = [
        _module("torchvision"),
        _module("torchvision.datasets"),
        _module("torchvision.ops"),
        _module("torchvision.ops.misc", FrozenBatchNorm2d=type("FrozenBatchNorm2d", (nn.Module,), {})),
        _module("torchvision.transforms"),
        _module("torchvision.transforms.functional", InterpolationMode=_InterpolationMode),
    ]
    return _imported("timm", [] if importlib.util.find_spec("torchvision") else modules)


def transformers() -> ModuleType:
    return _imported("transformers", [])


def mmpretrain(backbone: str) -> ModuleType:
    """A module of MMPretrain's backbones; the layers that it takes from MMCV and MMEngine are built here."""
    found = importlib.util.find_spec("mmpretrain")
    if found is None or found.origin is None:
        pytest.skip("mmpretrain is not installed")
    folder = Path(found.origin).parent
    packages = ["mmpretrain", "mmpretrain.models", "mmpretrain.models.backbones", "mmpretrain.models.utils"]
    modules = [_module(name, path=folder.parent / name.replace(".", "/")) for name in packages]
    modules += [
        _module("mmpretrain.registry", MODELS=_Registry()),
        _module("mmcv"),
        _module(
            "mmcv.cnn",
            ConvModule=_ConvModule,
            build_conv_layer=lambda _cfg, *sizes, **how: nn.Conv2d(*sizes, **how),
            build_norm_layer=lambda _cfg, channels, postfix="": (f"bn{postfix}", nn.BatchNorm2d(channels)),
            build_activation_layer=lambda _cfg: nn.ReLU(),
        ),
        _module("mmcv.cnn.bricks", DropPath=nn.Identity),
        _module("mmengine"),
        _module("mmengine.model", BaseModule=_BaseModule),
        _module("mmengine.model.weight_init", constant_init=None),
        _module("mmengine.utils", is_tuple_of=lambda value, kind: all(isinstance(one, kind) for one in value)),
        _module("mmengine.utils.dl_utils"),
        _module("mmengine.utils.dl_utils.parrots_wrapper", _BatchNorm=nn.BatchNorm2d),
    ]
    return _imported(f"mmpretrain.models.backbones.{backbone}", modules)


class _InterpolationMode(Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class _Registry:
    def register_module(self) -> Any:
        return lambda registered: registered


class _BaseModule(nn.Module):
    def __init__(self, *_args: object, **_kwargs: object) -> None:
        super().__init__()


class _ConvModule(nn.Sequential):
    """A convolution, with the norm and activation that were asked for, under MMCV's names."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        norm_cfg: object = None,
        act_cfg: Mapping[str, str] | None = None,
        **_rest: object,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=norm_cfg is None)
        if norm_cfg is not None:
            self.bn = nn.BatchNorm2d(out_channels)
        self.activate = nn.Sigmoid() if act_cfg and act_cfg["type"] == "Sigmoid" else nn.ReLU()


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> ModuleType | type:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (nn.Module,), {})


def _module(name: str, path: Path | None = None, **content: object) -> ModuleType:
    module = _StandIn(name)
    module.__dict__.update(content, __path__=[str(path)] if path else [])
    return module


def _imported(name: str, stand_ins: list[ModuleType]) -> ModuleType:
    """Import a library with stand-ins for others, which nothing else sees."""
    with pytest.MonkeyPatch.context() as patch:
        for module in stand_ins:
            patch.setitem(sys.modules, module.__name__, module)
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} cannot be imported: {error}")


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Skip random initialisation, which takes most of the time, where all parameters are overwritten anyway."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "uniform_", "normal_"):
            patch.setattr(nn.init, name, lambda tensor, *_args, **_kwargs: tensor)
        yield


def trained(network: nn.Module) -> dict[str, Tensor]:
    """Give a network parameters and statistics as training leaves them, none of them trivial; return its state dict."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.1, generator=generator)
    return network.eval().state_dict()
