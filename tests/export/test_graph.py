from contextlib import closing

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from export import backends
from export.backends import RUNTIMES, Runtime
from export.graph import CompleteGraph, to_onnx
from export.recipe import OPSET, plan
from export.reference import reference_logits
from models.manifest import (
    ACTIVATION_MAPS_NAME,
    FEATURES_NAME,
    INDICES_NAME,
    INPUT_NAME,
    LOGITS_NAME,
    PROBABILITIES_NAME,
    Activation,
    ChannelOrder,
    Preprocessing,
)
from tests.export.conftest import Exported, export

GREY = Preprocessing(resize=24, crop=(16, 24), interpolation="bilinear", channels="grey", mean=(0.4,), std=(0.3,))


@pytest.fixture(scope="module")
def proto(exported: Exported) -> onnx.ModelProto:
    return onnx.load_from_string(exported.model)


def signature(values: object) -> dict[str, tuple[int, list[int | str]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim],
        )
        for value in values  # type: ignore[attr-defined]
    }


def test_graph_takes_pixels_and_gives_ranked_classes(proto: onnx.ModelProto) -> None:
    assert signature(proto.graph.input) == {INPUT_NAME: (onnx.TensorProto.UINT8, ["N", 32, 32, 3])}
    assert signature(proto.graph.output) == {
        PROBABILITIES_NAME: (onnx.TensorProto.FLOAT, ["N", 10]),
        INDICES_NAME: (onnx.TensorProto.INT32, ["N", 10]),
        LOGITS_NAME: (onnx.TensorProto.FLOAT, ["N", 10]),
        FEATURES_NAME: (onnx.TensorProto.FLOAT, ["N", 64]),
        ACTIVATION_MAPS_NAME: (onnx.TensorProto.FLOAT, ["N", 5, 8, 8]),
    }
    assert {(opset.domain, opset.version) for opset in proto.opset_import} == {("", 20)}


@pytest.mark.parametrize("batch", [1, 2, 5, 16])
def test_any_batch_size_runs(exported: Exported, batch: int) -> None:
    images = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), np.uint8)
    session = onnxruntime.InferenceSession(exported.model)
    probabilities, indices, logits = session.run([PROBABILITIES_NAME, INDICES_NAME, LOGITS_NAME], {INPUT_NAME: images})
    expected = reference_logits(exported.network, images, exported.recipe.preprocessing)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_array_equal(indices, np.argsort(-logits, axis=1))
    softmax = torch.from_numpy(expected).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, -np.sort(-softmax, axis=1), atol=1e-6)


def test_grey_is_pillows() -> None:
    """For a million of the 17 million colours, including white: the largest sum that float32 has to hold."""
    colours = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    colours[0] = 255
    seen = CompleteGraph(nn.Identity(), GREY, 1).channels(torch.from_numpy(colours).permute(2, 0, 1)[None].float())
    np.testing.assert_array_equal(seen[0, 0].numpy(), np.asarray(Image.fromarray(colours).convert("L")))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("channels", "classes", "activation"), [("bgr", 5, "softmax"), ("grey", 5, "sigmoid")])
def test_channels_and_activation_are_in_the_graph(
    exported: Exported, runtime: Runtime, channels: ChannelOrder, classes: int, activation: Activation
) -> None:
    """For images that are wider than high."""
    count = 1 if channels == "grey" else 3
    network = nn.Sequential(nn.Conv2d(count, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    mean, std = (0.3, 0.5, 0.6)[:count], (0.2, 0.3, 0.4)[:count]
    how = GREY.model_copy(update={"channels": channels, "mean": mean, "std": std})
    content = to_onnx(CompleteGraph(network.eval(), how, classes, activation), how.crop, OPSET)
    draft = exported.draft.model_copy(
        update={"preprocessing": how, "activation": activation, "num_classes": classes, "top_k": classes}
    )
    images = np.random.default_rng(0).integers(0, 256, (3, *how.crop, 3), np.uint8)
    with closing(backends.load(draft, content, runtime)) as backend:
        probabilities, indices, logits = backend.run(list(images))[:3]
    expected = torch.from_numpy(reference_logits(network, images, how))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    answer = expected.sigmoid() if activation == "sigmoid" else expected.softmax(1)
    np.testing.assert_allclose(probabilities, -np.sort(-answer.numpy(), axis=1), atol=1e-6)
    np.testing.assert_array_equal(indices, np.argsort(-logits, axis=1))


def test_batch_norm_is_folded_away(proto: onnx.ModelProto) -> None:
    operators = [node.op_type for node in proto.graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Conv") == 19


def test_file_holds_no_trace_of_this_machine(exported: Exported, proto: onnx.ModelProto) -> None:
    for trace in (b"/home", b"/root", b"site-packages", b".py", b"stack_trace", b"File "):
        assert trace not in exported.model
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_same_network_gives_the_same_bytes(exported: Exported) -> None:
    recipe = plan("cifar_resnet20", random=True)
    assert export(recipe, recipe.build(None)) == exported.model
