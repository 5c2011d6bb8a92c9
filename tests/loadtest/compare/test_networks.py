import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from loadtest.compare import networks
from loadtest.compare.networks import PrepareError, Work
from models import manifest
from models.manifest import INPUT_NAME, OUTPUT_NAMES
from tests import tiny

MODEL = "efficientnet_lite0"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)


def run_complete(work: Work) -> list[NDArray[np.float32]]:
    """The outputs of our server's graph for IMAGES."""
    folder = work.repository / work.name / "1"
    content = manifest.read_model_file(folder, manifest.read(folder))
    outputs: list[NDArray[np.float32]] = ort.InferenceSession(content).run(OUTPUT_NAMES, {INPUT_NAME: IMAGES})
    return outputs


def run_network(work: Work) -> NDArray[np.float32]:
    """The logits that a rival gets, which normalises the pixels itself."""
    session = ort.InferenceSession(work.network)
    normalised = (IMAGES / 255 - work.preprocessing["mean"]) / work.preprocessing["std"]
    pixels = normalised.transpose(0, 3, 1, 2).astype(np.float32)
    logits: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    return logits


@pytest.mark.parametrize("make", [networks.real, networks.tiny])
def test_both_sides_run_the_same_network(
    make: Callable[[Path, str, Path], Work], model_repository: Path, tmp_path: Path
) -> None:
    work = make(model_repository, MODEL, tmp_path)
    probabilities, indices, logits = run_complete(work)
    assert run_network(work) == pytest.approx(logits, rel=1e-3, abs=1e-3)
    assert (indices[:, 0] == logits.argmax(axis=1)).all()
    assert (np.diff(probabilities) <= 0).all()


def test_tiny_is_a_model_of_its_own_in_the_same_shapes(model_repository: Path, tmp_path: Path) -> None:
    work = networks.tiny(model_repository, MODEL, tmp_path)
    found = manifest.read(work.repository / networks.TINY / "1")
    like = manifest.read(model_repository / MODEL / "1")
    assert found.input_shape == like.input_shape
    assert found.num_classes == like.num_classes
    assert found.weights.random
    assert work.network.stat().st_size < 100_000


def test_int8_model_is_found_by_what_it_was_made_of(model_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    version = repository / MODEL / "1"
    version.mkdir(parents=True)
    for file in (model_repository / MODEL / "1").iterdir():
        (version / file.name).symlink_to(file)
    assert networks.real(repository, MODEL, tmp_path).int8 is None
    tiny.write(repository, "other")
    int8 = repository / "quick" / "1"
    int8.mkdir(parents=True)
    described = {"name": "quick", "backend": "openvino", "precision": "int8", "conversion": {"source": MODEL}}
    (int8 / manifest.FILE_NAME).write_text(json.dumps(described))
    assert networks.real(repository, MODEL, tmp_path).int8 == "quick"
    assert networks.real(repository, MODEL, tmp_path).cascade is None
    tiny.write_cascade(repository, "exact", [tiny.write(repository, "first"), manifest.read(version)])
    assert networks.real(repository, MODEL, tmp_path).cascade == "exact"


def test_a_graph_without_a_convolution_is_refused(tmp_path: Path) -> None:
    tiny.write(tmp_path, "red")
    with pytest.raises(PrepareError, match="not a graph of a convolutional network"):
        networks.real(tmp_path, "red", tmp_path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="nowhere has no ONNX model"):
        networks.tiny(tmp_path, "nowhere", tmp_path)
