"""Every network of the papers goes the whole way: PyTorch, parity gate, repository, server, answer.

So does one that only timm has; test_networks exports the variations in timm's others, and test_names compares them with
timm. A stage has at most two blocks, except in `WHOLE`: a third would repeat the second, and the time of an export
grows with the square of their number. tests/models/test_resnet.py has as many blocks as the papers.
"""

import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from export import convert, repository
from export.recipe import plan
from export.samples import PHOTOS
from models import zoo
from models.architectures import ARCHITECTURES, TIMM
from tests import tiny
from tests.server.running import RunningServer

PHOTO = PHOTOS / "cat.jpg"
SERVED_ELSEWHERE = {
    "efficientnet_lite0",  # with its trained weights, as are the four CIFAR networks: test_real_photos
    *(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56)),
    "cifar_preresnet1001",  # test_deepest
    "cifar_resnet1202",  # like the one above, and takes as long again
}
TIMMS = TIMM.keys() - {"resnet10t"}
NAMES = sorted({entry.architecture for entry in zoo.NETWORKS.values()} - SERVED_ELSEWHERE - TIMMS)
WHOLE = {"resnet152"}  # as are the four CIFAR networks, EfficientNet-Lite0, and the deepest of all
SIDE = 64
"""Pixels: fewer than these networks are made for; the same layers with a tenth of the arithmetic."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def server(folder: Path) -> Generator[RunningServer]:
    """One server for all networks, which come and go."""
    tiny.write(folder, crop=SIDE)
    with RunningServer(folder) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_exported_as_pytorch_computes_it_and_answers(
    name: str, folder: Path, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in WHOLE:
        known = ARCHITECTURES[name]
        monkeypatch.setitem(ARCHITECTURES, name, replace(known, depths=tuple(min(depth, 2) for depth in known.depths)))
    recipe = plan(name, random=True)
    if max(recipe.preprocessing.crop) > SIDE:
        small = recipe.preprocessing.model_copy(update={"resize": 72, "crop": (SIDE, SIDE)})
        recipe = replace(recipe, preprocessing=small)
    try:
        repository.publish(folder, *convert.to_onnx(recipe, name, None, PHOTOS))
        loaded = server.client.post(f"/v2/repository/models/{name}/load")
        assert loaded.status_code == 200, loaded.text
        answer = server.classify(PHOTO.read_bytes(), model=name).json()
        assert server.client.post(f"/v2/repository/models/{name}/unload").status_code == 200
    finally:
        shutil.rmtree(folder / name, ignore_errors=True)
    assert (answer["model"], answer["random_weights"]) == (name, True)
    assert len(answer["predictions"]) == 5
