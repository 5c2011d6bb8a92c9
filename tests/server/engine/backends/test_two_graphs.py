"""A small network's requests do not pay for features and activation maps that they do not want."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from models import manifest
from models.manifest import EXTRA_NAMES, OUTPUT_NAMES, Manifest
from server.engine import backends
from server.engine.backends import ONNX_BACKENDS, Backend, two_graphs
from server.engine.backends.two_graphs import TwoGraphs
from server.engine.classes import Extras
from server.settings import Settings
from tests import tiny

WITH_A_BRANCH = """
<ir_version: 10, opset_import: ["" : 20]>
small (uint8[n] images) => (float[n] probabilities, float[n] features, float[n] activation_maps)
<float factor = {2}, bool always = {1}>
{
    read_by_a_branch = Cast <to = 1> (images)
    features = Mul (read_by_a_branch, factor)
    probabilities = If (always) <
        then_branch = yes () => (float[n] chosen) {
            chosen = If (always) <
                then_branch = deep () => (float[n] deepest) { deepest = Neg (read_by_a_branch) },
                else_branch = shallow () => (float[n] other) { other = Cast <to = 1> (images) }
            >
        },
        else_branch = no () => (float[n] same) { same = Cast <to = 1> (images) }
    >
    only_for_maps = Sqrt (features)
    activation_maps = Mul (only_for_maps, factor)
}
"""


@pytest.fixture
def model(tmp_path: Path) -> tuple[Manifest, bytes]:
    found = tiny.write(tmp_path, crop=8, work=1, extras=True)
    return found, manifest.read_model_file(tmp_path / found.name / "1", found)


@pytest.fixture
def images() -> list[NDArray[np.uint8]]:
    """Two noisy images."""
    return list(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("runtime", ONNX_BACKENDS)
def test_what_is_asked_for_beside_the_classes_changes_none(
    model: tuple[Manifest, bytes], images: list[NDArray[np.uint8]], runtime: str
) -> None:
    backend = backends.load(*model, Settings.model_validate({"backend": runtime, "inference_threads": 1}))
    assert isinstance(backend, TwoGraphs)
    plain, logits, features, everything = (
        backend.run(images, wanted)
        for wanted in (Extras.NONE, Extras.LOGITS, Extras.FEATURES, Extras.FEATURES | Extras.HEATMAP)
    )
    for answer in (logits, features, everything):
        for ours, expected in zip(answer[: len(OUTPUT_NAMES)], plain[: len(OUTPUT_NAMES)], strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert (plain.features, plain.activation_maps, logits.features, features.activation_maps) == (None,) * 4
    assert everything.features is not None
    assert everything.activation_maps is not None
    np.testing.assert_allclose(everything.features, np.stack(images).mean((1, 2)), rtol=1e-6)
    assert features.features is not None
    np.testing.assert_array_equal(features.features, everything.features)
    assert everything.activation_maps.shape == (2, 5, 8, 8)


def test_only_batches_that_want_them_run_the_whole_graph() -> None:
    plain, whole = Mock(spec=Backend, instances=3), Mock(spec=Backend, instances=1)
    both = TwoGraphs(plain, whole)
    for wanted in (Extras.NONE, Extras.LOGITS):
        assert both.run([], wanted) is plain.run.return_value
        assert both.run_beside([], wanted) is plain.run_beside.return_value
    assert not whole.run.called
    for wanted in (Extras.FEATURES, Extras.HEATMAP, Extras.LOGITS | Extras.HEATMAP):
        assert both.run([], wanted) is whole.run.return_value
        assert both.run_beside([], wanted) is whole.run_beside.return_value
    assert plain.run.call_count == 2
    assert both.instances == 3
    both.close()
    assert (plain.close.call_count, whole.close.call_count) == (1, 1)


def test_one_graph_serves_a_large_file_a_gpu_and_a_model_without_extras(
    model: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, content = model
    cuda = Settings(providers=("CUDAExecutionProvider",))
    assert two_graphs.are_worth_it(found, content, Settings())
    assert not two_graphs.are_worth_it(found, content, cuda)
    assert two_graphs.are_worth_it(found, content, cuda.model_copy(update={"backend": "openvino"}))
    for changes in ({"features": None, "activation_maps": None}, {"backend": "torch"}, {"backend": "tensorrt"}):
        assert not two_graphs.are_worth_it(found.model_copy(update=changes), content, Settings())
    monkeypatch.setattr(two_graphs, "LARGEST_FILE_BYTES", {"onnx": len(content) - 1})
    backend = backends.load(found, content, Settings(inference_threads=1))
    assert not isinstance(backend, TwoGraphs)
    assert backends.questions(found, backend) == (Extras.FEATURES | Extras.HEATMAP,)


def test_the_file_keeps_everything_that_its_other_outputs_need(model: tuple[Manifest, bytes]) -> None:
    whole, pruned = onnx.load_from_string(model[1]), onnx.load_from_string(two_graphs.classes_alone(model[1]))
    assert [output.name for output in pruned.graph.output] == OUTPUT_NAMES
    gone = {"Transpose", "Slice", "Gather", "Reshape", "Identity"}  # the tiny network has these for nothing else
    expected = [node for node in whole.graph.node if node.op_type not in gone and node.output[0] != "flat_maps"]
    assert list(pruned.graph.node) == expected
    for proto in (whole, pruned):
        del proto.graph.node[:], proto.graph.output[:]
    assert pruned == whole


def test_values_that_only_a_branch_reads_are_kept() -> None:
    whole = onnx.parser.parse_model(WITH_A_BRANCH)
    pruned = onnx.load_from_string(two_graphs.classes_alone(whole.SerializeToString()))
    onnx.checker.check_model(pruned, full_check=True)
    assert [node.output[0] for node in pruned.graph.node] == ["read_by_a_branch", "probabilities"]
    assert not {output.name for output in pruned.graph.output} & set(EXTRA_NAMES)


@pytest.mark.parametrize("size", [1, 127, 128, 300, 2**14 - 1, 2**14, 2**21])
def test_texts_of_any_length_are_copied_as_they_are(size: int) -> None:
    graph = onnx.helper.make_graph([], "graph", [], [], doc_string="x" * size)
    content = onnx.helper.make_model(graph, doc_string="y" * size).SerializeToString()
    assert two_graphs.classes_alone(content) == content
