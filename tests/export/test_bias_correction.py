import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from export import activations, backends
from export.bias_correction import correct
from models.manifest import LOGITS_NAME
from tests.export.conftest import Exported

LARGEST = 7
"""Four-bit weights, so that rounding shows."""


def rounded(model: onnx.ModelProto) -> bytes:
    """The graph with the weights of its layers rounded, biases as they are."""
    model = onnx.load_from_string(model.SerializeToString())
    names = {node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            weights = numpy_helper.to_array(tensor)
            scale = np.abs(weights).max(tuple(range(1, weights.ndim)), keepdims=True) / LARGEST
            tensor.CopyFrom(numpy_helper.from_array(np.rint(weights / scale) * scale, tensor.name))
    content: bytes = model.SerializeToString()
    return content


def observed(model: onnx.ModelProto, images: NDArray[np.uint8]) -> activations.Activations:
    return activations.observe(onnx.shape_inference.infer_shapes(model), images)


def logits_of(exported: Exported, model: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return backends.load(exported.draft, model).run(list(images)).logits


def test_mean_logits_are_those_before_rounding(exported: Exported) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    model = onnx.load_from_string(exported.model)
    wanted = logits_of(exported, exported.model, images)
    plain = logits_of(exported, rounded(model), images)
    correct(model, observed(model, images), LARGEST, excluded=set())
    onnx.checker.check_model(model, full_check=True)
    corrected = logits_of(exported, rounded(model), images)
    before, after = (np.abs((logits - wanted).mean(0)).mean() for logits in (plain, corrected))
    assert after < before / 3


def test_layer_that_is_not_rounded_keeps_its_bias(exported: Exported) -> None:
    model = onnx.load_from_string(exported.model)
    first, *others = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    before = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    untouched = [name for node in others for name in node.input if name in before]
    correct(model, observed(model, exported.photos), LARGEST, excluded={node.name for node in others})
    after = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    assert [after[name] for name in untouched] == [before[name] for name in untouched]
    assert after[first.input[2]] not in before.values()


@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_layer_is_corrected_exactly(exported: Exported, *, has_bias: bool) -> None:
    model = onnx.load_from_string(exported.model)
    last = next(node for node in model.graph.node if LOGITS_NAME in node.output)
    if not has_bias:
        del last.input[2:]
    others = {node.name for node in model.graph.node} - {last.name}
    wanted = logits_of(exported, model.SerializeToString(), exported.photos).mean(0)
    correct(model, observed(model, exported.photos), LARGEST, excluded=others)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == last.input[1])
    values = numpy_helper.to_array(weights)
    scale = np.abs(values).max(1, keepdims=True) / LARGEST
    weights.CopyFrom(numpy_helper.from_array(np.rint(values / scale) * scale, weights.name))
    found = logits_of(exported, model.SerializeToString(), exported.photos).mean(0)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
