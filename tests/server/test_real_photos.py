"""Real photographs through HTTP get the classes that PyTorch gives them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.reference import reference_logits
from tests.reference import load_network, reference_pixels
from tests.server.running import RunningServer

BATCH = 25


def served_top5(repository: Path, model: str, paths: list[Path]) -> NDArray[np.int64]:
    """Post the photos, 8 at a time: int64[len(paths), 5] class indices, best first."""
    with RunningServer(repository, models=model) as server:
        answers = server.classify_all([path.read_bytes() for path in paths], 8)
        predictions = [answer.json()["predictions"] for answer in answers]
        return np.array([[each["class_id"] for each in five] for five in predictions], np.int64)


def reference_top1(model: str, checkpoint: Path | None, paths: list[Path]) -> NDArray[np.int64]:
    """The best classes of the same files by plain Pillow and PyTorch: int64[len(paths)]."""
    network, preprocessing, _ = load_network(model, checkpoint)
    images = np.stack([reference_pixels(path, preprocessing) for path in paths])
    batches = np.split(images, range(BATCH, len(images), BATCH))
    logits = [reference_logits(network, batch, preprocessing) for batch in batches]
    best: NDArray[np.int64] = np.argmax(np.concatenate(logits), axis=1)
    return best


def test_imagenet_photos_get_the_top1_of_pytorch_and_the_right_class_in_five(
    shared: Path, model_repository: Path
) -> None:
    paths = sorted((shared / "data" / "imagenet-sample").glob("*.JPEG"))[::2]
    truth = np.arange(0, 1000, 8)  # one photo for every eighth class, in the order of the WordNet ids
    served = served_top5(model_repository, "efficientnet_lite0", paths)
    reference = reference_top1("efficientnet_lite0", None, paths)
    assert len(paths) == 125
    assert (served[:, 0] == reference).sum() >= 124
    assert (served == truth[:, None]).any(1).mean() >= 0.97


# All images for one depth only: tests/export/test_accuracy.py has the accuracy of each without a server.
@pytest.mark.parametrize(("depth", "step"), [(20, 1), (32, 5), (44, 5), (56, 5)])
def test_cifar_images_score_what_pytorch_scores(shared: Path, cifar_repository: Path, depth: int, step: int) -> None:
    (checkpoint,) = (shared / "weights" / "cifar10").glob(f"resnet{depth}-*.th")
    folders = sorted((shared / "data" / "cifar10-test").iterdir())
    paths = [path for folder in folders for path in sorted(folder.glob("*.jpg"))[::step]]
    truth = np.repeat(np.arange(10), 100 // step)
    served = served_top5(cifar_repository, f"cifar_resnet{depth}", paths)[:, 0]
    reference = reference_top1(f"cifar_resnet{depth}", checkpoint, paths)
    assert len(paths) == 1000 // step
    assert (reference == truth).mean() > 0.78
    assert abs((served == truth).sum() - (reference == truth).sum()) <= 2
    assert (served == reference).sum() >= len(paths) - 2 // step
