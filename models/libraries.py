"""Builds networks that only timm or transformers defines, with that library."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, assert_never

from torch import Tensor, nn

from models import checkpoint, hints
from models.config import Timm, Transformers
from models.errors import ExpectedError, first_line


class LibraryError(ExpectedError):
    """A library is not installed, or does not have the network."""


class _Logits(nn.Module):
    """Adapts a transformers network, which returns a record, to return its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images float32[N, C, H, W] to logits float32[N, num_classes]."""
        logits: Tensor = self.network(images).logits
        return logits


def build(network: Timm | Transformers, num_classes: int, state: Mapping[str, Tensor], origin: str) -> nn.Module:
    """Build a network in evaluation mode from a state dict with the library's parameter names.

    It maps normalised images float32[N, C, H, W] to logits float32[N, num_classes]. Only the library's code is run.

    Raises:
        LibraryError: the library is not installed, or does not have the network.
        CheckpointError: the parameters do not fit the network; the message names `origin`, where they come from.
    """
    match network:
        case Timm():
            timm = _imported("timm", network.name)
            try:
                # Arguments that a config must not set are passed here: if it sets one, Python refuses the duplicate.
                built: nn.Module = timm.create_model(
                    network.name,
                    num_classes=num_classes,
                    pretrained=False,
                    pretrained_cfg=None,
                    pretrained_cfg_overlay=None,
                    checkpoint_path=None,
                    cache_dir=None,
                    **network.arguments,
                )
            except Exception as error:  # timm's networks take any arguments and raise any exception
                what = f"timm {timm.__version__} does not build {network.name}"
                raise LibraryError(f"{what}: {first_line(error)}") from error
            # transformers' TimmWrapper saves timm's parameters with this prefix.
            state = {name.removeprefix("timm_model."): tensor for name, tensor in state.items()}
            checkpoint.load(built, state, origin)
            return built.eval()
        case Transformers():
            transformers = _imported("transformers", network.name)
            try:
                config = transformers.AutoConfig.from_pretrained(
                    network.config.parent, local_files_only=True, trust_remote_code=False
                )
                # Eager attention: with a fused one, Swin cannot be exported with a free batch size.
                built = transformers.AutoModelForImageClassification.from_config(
                    config, trust_remote_code=False, attn_implementation="eager"
                )
            except Exception as error:
                what = f"transformers {transformers.__version__} does not build {network.name}"
                raise LibraryError(f"{what}: {first_line(error)}") from error
            checkpoint.load(built, _renamed(built, state, transformers), origin)
            return _Logits(built.float()).eval()
        case _:
            assert_never(network)


def _renamed(network: Any, state: Mapping[str, Tensor], transformers: ModuleType) -> Mapping[str, Tensor]:
    """Return parameters under the names that this version of transformers has for them; `state` if it has none.

    It saves many networks, such as ViT, under the names of earlier versions, and renames and joins them as it loads.
    """
    if network.state_dict().keys() == state.keys():
        return state
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        loaded, found = type(network).from_pretrained(
            None, config=network.config, state_dict=dict(state), output_loading_info=True
        )
    except Exception:  # the caller says what does not fit
        return state
    renamed: Mapping[str, Tensor] = loaded.state_dict()
    return state if any(found.values()) else renamed


def _imported(library: str, network: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except Exception as error:  # an incompatible dependency of the library may raise anything
        raise LibraryError(
            f"{network} is a network that only {library} defines, and {library} cannot be imported"
            f" ({first_line(error)}): {hints.install(library)}"
        ) from error
