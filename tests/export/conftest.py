"""Fixtures of the export's tests: one small network with untrained parameters, exported once in this process."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from export.graph import CompleteGraph, to_onnx
from export.recipe import OPSET, Recipe, plan
from export.reference import reference_images
from export.to_onnx import PHOTOS


@dataclass(frozen=True)
class Exported:
    recipe: Recipe
    network: nn.Module
    model: bytes
    photos: NDArray[np.uint8]


def export(recipe: Recipe, network: nn.Module) -> bytes:
    preprocessing = recipe.entry.preprocessing
    return to_onnx(CompleteGraph(network, preprocessing, recipe.top_k), preprocessing.crop, OPSET)


@pytest.fixture(scope="session")
def exported() -> Exported:
    recipe = plan("cifar_resnet20", random=True)
    network = recipe.build(None)
    return Exported(recipe, network, export(recipe, network), reference_images(PHOTOS, recipe.entry.preprocessing))


@pytest.fixture
def labels_of_seven(tmp_path: Path) -> Path:
    path = tmp_path / "seven.txt"
    path.write_text("\n".join(f"kind {index}" for index in range(7)))
    return path
