"""If torchvision is installed, every network that it also has is compared with its own."""

import importlib
from types import ModuleType

import pytest
import torch

from models import networks, zoo
from models.zoo import OfficialWeights

pytestmark = pytest.mark.torchvision


@pytest.fixture(scope="module")
def torchvision_models() -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:  # RuntimeError: it is installed, but for another torch
        pytest.skip(f"torchvision cannot be imported: {error}")


@pytest.mark.parametrize(
    "architecture",
    sorted({entry.architecture for entry in zoo.NETWORKS.values() if isinstance(entry.weights, OfficialWeights)}),
)
def test_network_is_torchvisions(torchvision_models: ModuleType, architecture: str) -> None:
    theirs = getattr(torchvision_models, architecture)(weights=None).eval()
    ours = networks.build(architecture, 1000)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, entry in zoo.NETWORKS.items() if entry.accuracy and "@" not in name])
def test_zoo_says_what_torchvision_says(torchvision_models: ModuleType, name: str) -> None:
    entry = zoo.NETWORKS[name]
    if not isinstance(entry.weights, OfficialWeights):
        pytest.skip("not of torchvision")
    newest = torchvision_models.get_model_weights(entry.architecture).DEFAULT
    assert newest.url.endswith("/" + entry.weights.file_name)
    assert entry.accuracy
    assert newest.meta["_metrics"]["ImageNet-1K"] == {"acc@1": entry.accuracy.top1, "acc@5": entry.accuracy.top5}
    assert newest.transforms().resize_size == [entry.preprocessing.resize]
