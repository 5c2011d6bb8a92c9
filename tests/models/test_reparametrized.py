"""Weights that PyTorch's utilities compute from other parameters are those that the network uses."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from models import reparametrized


def whole_weight_norm(layer: nn.Module) -> object:
    return parametrizations.weight_norm(layer, dim=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),  # type: ignore[no-untyped-call]
        lambda layer: prune.random_unstructured(layer, "bias", 0.5),  # type: ignore[no-untyped-call]
        pytest.param(weight_norm, marks=pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")),
        parametrizations.weight_norm,
        whole_weight_norm,
        spectral_norm,
        parametrizations.spectral_norm,
    ],
)
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: nn.Conv2d(2, 3, 3)])
def test_weights_are_those_that_the_layer_uses(
    change: Callable[[nn.Module], object], make: Callable[[], nn.Linear | nn.Conv2d]
) -> None:
    torch.manual_seed(0)
    layer = make()
    change(layer)
    network = nn.ModuleDict({"fc": layer})
    network.train()
    layer(torch.randn(2, 2, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(2, 4))
    network.eval()
    layer(torch.randn(2, 2, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(2, 4))
    found = reparametrized.plain(network.state_dict())
    assert found.keys() == {"fc.weight", "fc.bias"}
    assert torch.allclose(found["fc.weight"], layer.weight, rtol=1e-5)
    assert layer.bias is not None
    assert torch.allclose(found["fc.bias"], layer.bias, rtol=1e-5)


def test_a_name_that_only_ends_alike_stays() -> None:
    state = {"weight_orig": torch.ones(2), "gate_g": torch.ones(2)}
    assert reparametrized.plain(state).keys() == state.keys()
