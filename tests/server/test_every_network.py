"""Every network of the zoo goes the whole way: PyTorch, parity gate, repository, server, answer."""

from dataclasses import replace
from pathlib import Path

import pytest

from export import convert, repository
from export.recipe import plan
from export.samples import PHOTOS
from models import zoo
from tests.server.running import RunningServer

PHOTO = PHOTOS / "cat.jpg"
SERVED_ELSEWHERE = {
    "efficientnet_lite0",  # with its trained weights, as are the four CIFAR networks: test_real_photos
    *(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56)),
    "cifar_preresnet1001",  # test_deepest
    "cifar_resnet1202",  # like it, and takes as long again
}
ARCHITECTURES = sorted({entry.architecture for entry in zoo.NETWORKS.values()} - SERVED_ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_is_exported_as_pytorch_computes_it_and_answers(name: str, tmp_path: Path) -> None:
    recipe = plan(name, random=True)
    if max(recipe.preprocessing.crop) > 64:  # fewer pixels, the same layers: a tenth of the arithmetic
        small = recipe.preprocessing.model_copy(update={"resize": 72, "crop": (64, 64)})
        recipe = replace(recipe, preprocessing=small)
    repository.publish(tmp_path, *convert.to_onnx(recipe, name, None, PHOTOS))
    with RunningServer(tmp_path) as server:
        answer = server.classify(PHOTO.read_bytes()).json()
    assert (answer["model"], answer["random_weights"]) == (name, True)
    assert len(answer["predictions"]) == 5
