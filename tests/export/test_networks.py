"""Every kind of network of the papers passes the gate from PyTorch to ONNX."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export import last_layer, parity
from export.recipe import Recipe, plan
from export.samples import PHOTOS, photos
from models.architectures import ARCHITECTURES, Attention, Shortcut, StrideIn
from models.manifest import Preprocessing
from tests.export.conftest import describe, export, truth


def give_statistics(network: nn.Module) -> None:
    """Set statistics, scales and shifts as training leaves them; an untrained network's make folding trivial."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.1, generator=generator)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)


def small(recipe: Recipe, side: int) -> Recipe:
    """The same for smaller images; 80 pixels become 5 before the last stage, which then halves an odd number."""
    cropped = recipe.preprocessing.model_dump() | {"resize": 96, "crop": side}
    return replace(recipe, preprocessing=Preprocessing.model_validate(cropped))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shortcut", "stride_in", "operators"),
    [
        ("resnet18", "A", None, {"Conv": 17, "Relu": 17, "Add": 9}),
        ("resnet18", "C", None, {"Conv": 25, "Relu": 17, "Add": 9}),
        ("resnet50", None, "1x1", {"Conv": 53, "Relu": 49, "Add": 17}),
        ("plain18", None, None, {"Conv": 17, "Relu": 17, "Add": 1}),
        # A batch norm after a sum cannot be folded into a convolution.
        ("preresnet18", None, None, {"Conv": 20, "Relu": 17, "Add": 9, "BatchNormalization": 8}),
        ("preresnet50", None, "1x1", {"Conv": 53, "Relu": 49, "Add": 17, "BatchNormalization": 16}),
    ],
)
def test_network_is_exported_as_pytorch_computes_it(
    name: str, shortcut: Shortcut | None, stride_in: StrideIn | None, operators: dict[str, int]
) -> None:
    recipe = plan(name, random=True, num_classes=7, shortcut=shortcut, stride_in=stride_in)
    recipe = recipe if ARCHITECTURES[name].cifar else small(recipe, 80)
    network = recipe.build(None)
    give_statistics(network)
    model = export(recipe, network)
    preprocessing = recipe.preprocessing
    draft = describe(recipe, network, model)
    pictures = photos(PHOTOS, preprocessing)
    measured = parity.check(draft, model, truth(network, preprocessing), pictures, head=last_layer.head(model))
    assert measured.max_logit_error < 1e-5
    nodes = Counter(node.op_type for node in onnx.load_from_string(model).graph.node)
    assert {each: nodes[each] for each in ("Conv", "Relu", "Add", "BatchNormalization") if nodes[each]} == operators
    assert nodes["Identity"] + nodes["Constant"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attention"),
    [("resnetrs50", "se"), ("resnetblur18", "eca"), ("resnetaa50", None), ("resnetv2_50x1_bit", None)],
)
def test_all_that_timm_varies_is_exported_as_pytorch_computes_it(
    name: str, attention: Attention | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shallow = replace(ARCHITECTURES[name], depths=(1, 1, 1, 1), width=32, attention=attention)
    monkeypatch.setitem(ARCHITECTURES, name, shallow)
    recipe = small(plan(name, random=True, num_classes=7), 64 if name == "resnetaa50" else 80)
    network = recipe.build(None)
    give_statistics(network)
    model = export(recipe, network)
    pictures = photos(PHOTOS, recipe.preprocessing)
    draft, expected = describe(recipe, network, model), truth(network, recipe.preprocessing)
    measured = parity.check(draft, model, expected, pictures, head=last_layer.head(model))
    assert measured.max_logit_error < 1e-5


def test_export_leaves_the_network_as_it_was() -> None:
    recipe = plan("cifar_resnet20", random=True)
    network = recipe.build(None)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export(recipe, network)
    assert all(np.array_equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert list(network.state_dict()) == list(before)
