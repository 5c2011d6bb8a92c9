"""Fixtures of the export's tests: a small untrained network, exported once in this process."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from export import convert, last_layer
from export.graph import CompleteGraph, to_onnx
from export.parity import Truth
from export.recipe import OPSET, Recipe, plan
from export.reference import reference_answers
from export.samples import PHOTOS, photos
from models.manifest import Manifest, Preprocessing


@dataclass(frozen=True)
class Exported:
    recipe: Recipe
    network: nn.Module
    model: bytes
    photos: NDArray[np.uint8]

    @property
    def draft(self) -> Manifest:
        return describe(self.recipe, self.network, self.model)


def describe(recipe: Recipe, network: nn.Module, model: bytes) -> Manifest:
    sizes = last_layer.sizes(model)._asdict() if model else {}
    return convert.describe(recipe, recipe.name, None, network, model).model_copy(update=sizes)


def truth(network: nn.Module, preprocessing: Preprocessing) -> Truth:
    return partial(reference_answers, network, preprocessing=preprocessing)


def export(recipe: Recipe, network: nn.Module) -> bytes:
    preprocessing = recipe.preprocessing
    return to_onnx(CompleteGraph(network, preprocessing, recipe.top_k, recipe.activation), preprocessing.crop, OPSET)


@pytest.fixture(scope="session")
def exported() -> Exported:
    recipe = plan("cifar_resnet20", random=True)
    network = recipe.build(None)
    return Exported(recipe, network, export(recipe, network), photos(PHOTOS, recipe.preprocessing))


@pytest.fixture
def labels_of_seven(tmp_path: Path) -> Path:
    path = tmp_path / "seven.txt"
    path.write_text("\n".join(f"kind {index}" for index in range(7)))
    return path
