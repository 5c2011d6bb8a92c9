import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

from export import last_layer, parity
from export.parity import ParityError
from models.manifest import FEATURES_NAME, INDICES_NAME, PROBABILITIES_NAME, Parity, Preprocessing
from server.engine.backends import two_graphs
from tests.export.conftest import Exported, truth


def check(
    exported: Exported,
    *,
    model: bytes | None = None,
    network: nn.Module | None = None,
    preprocessing: Preprocessing | None = None,
    photos: NDArray[np.uint8] | None = None,
) -> Parity:
    """Run the gate on the export, with any part of it replaced."""
    expected = truth(network or exported.network, preprocessing or exported.recipe.preprocessing)
    content = exported.model if model is None else model
    images, head = exported.photos if photos is None else photos, last_layer.head(exported.model)
    return parity.check(exported.draft, content, expected, images, head=head)


def test_faithful_graph_passes_with_what_was_measured(exported: Exported) -> None:
    measured = check(exported)
    assert measured.batch_sizes == (1, 3, 8)
    assert (measured.images, measured.real_images) == (24, 3)
    assert measured.max_logit_error < measured.max_logit_error_allowed / 10
    assert measured.top1_agreement == 1.0


def test_more_photos_than_a_batch_are_all_compared(exported: Exported) -> None:
    photos = np.resize(exported.photos, (21, *exported.photos.shape[1:]))
    measured = check(exported, photos=photos)
    assert (measured.images, measured.real_images) == (24 + 13, 21)


def rejected(exported: Exported, model: bytes) -> str:
    with pytest.raises(ParityError) as caught:
        check(exported, model=model)
    return str(caught.value)


def tampered(exported: Exported, change: Callable[[onnx.ModelProto], object]) -> bytes:
    proto = onnx.load_from_string(exported.model)
    change(proto)
    content: bytes = proto.SerializeToString()
    return content


def test_one_filter_that_is_off_is_rejected(exported: Exported) -> None:
    def scale_one_filter(proto: onnx.ModelProto) -> None:
        weight = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("conv1.weight"))
        values = numpy_helper.to_array(weight).copy()
        values[0] *= 1.1
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    assert "logits differ from PyTorch's" in rejected(exported, tampered(exported, scale_one_filter))


def test_network_that_changed_after_export_is_rejected(exported: Exported) -> None:
    network = copy.deepcopy(exported.network)
    network.get_parameter("layer2.0.conv1.weight").data[0] *= 1.1
    with pytest.raises(ParityError, match="logits differ"):
        check(exported, network=network)


def test_other_normalisation_is_rejected(exported: Exported) -> None:
    other = exported.recipe.preprocessing.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    with pytest.raises(ParityError, match="logits differ"):
        check(exported, preprocessing=other)


def test_graph_for_requests_without_extras_is_put_to_the_gate_as_well(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(content: bytes) -> bytes:
        proto = onnx.load_from_string(classes_alone(content))
        name = next(node.input[2] for node in proto.graph.node if node.op_type == "Gemm")
        bias = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
        made: bytes = proto.SerializeToString()
        return made

    classes_alone = two_graphs.classes_alone
    monkeypatch.setattr(two_graphs, "LARGEST_FILE_BYTES", {"onnx": len(exported.model)})
    check(exported)
    monkeypatch.setattr(two_graphs, "classes_alone", other)
    with pytest.raises(ParityError, match="logits differ"):
        check(exported)


def test_frozen_batch_is_rejected(exported: Exported) -> None:
    def freeze(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    assert "does not run" in rejected(exported, tampered(exported, freeze))


@pytest.mark.parametrize("allowed", [parity.MAX_PROBABILITY_ERROR, 1.0], ids=["by far", "however close"])
def test_wrong_ranking_of_right_logits_is_rejected(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, allowed: float
) -> None:
    monkeypatch.setattr(parity, "MAX_PROBABILITY_ERROR", allowed)

    def rank_smallest_first(proto: onnx.ModelProto) -> None:
        top_k = next(node for node in proto.graph.node if node.op_type == "TopK")
        next(attribute for attribute in top_k.attribute if attribute.name == "largest").i = 0

    assert "ranks classes otherwise" in rejected(exported, tampered(exported, rank_smallest_first))


def test_not_a_number_is_rejected(exported: Exported) -> None:
    def poison(proto: onnx.ModelProto) -> None:
        bias = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("fc.bias"))
        bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))

    assert "differ from PyTorch's by nan" in rejected(exported, tampered(exported, poison))


def test_missing_output_is_rejected(exported: Exported) -> None:
    def rename(proto: onnx.ModelProto) -> None:
        names = {PROBABILITIES_NAME: INDICES_NAME, INDICES_NAME: PROBABILITIES_NAME}
        for value in proto.graph.output:
            value.name = names.get(value.name, value.name)

    assert "does not run" in rejected(exported, tampered(exported, rename))


def test_file_that_is_no_graph_is_rejected(exported: Exported) -> None:
    assert "does not run" in rejected(exported, b"no graph")


def test_features_that_are_not_pytorchs_are_rejected(exported: Exported) -> None:
    def scale_them(proto: onnx.ModelProto) -> None:
        factor = numpy_helper.from_array(np.array(1.01, np.float32), "off")
        proto.graph.initializer.append(factor)
        node = next(node for node in proto.graph.node if FEATURES_NAME in node.output)
        node.output[0] = "right"
        proto.graph.node.append(helper.make_node("Mul", ["right", "off"], [FEATURES_NAME]))

    assert "features differ from PyTorch's" in rejected(exported, tampered(exported, scale_them))


def test_maps_of_other_classes_are_rejected(exported: Exported) -> None:
    def shift_the_rows(proto: onnx.ModelProto) -> None:
        weight = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("fc.weight"))
        proto.graph.initializer.append(numpy_helper.from_array(np.roll(numpy_helper.to_array(weight), 1, 0), "rolled"))
        gather = next(node for node in proto.graph.node if node.op_type == "Gather")
        gather.input[0] = "rolled"

    assert "activation maps are not those of its logits" in rejected(exported, tampered(exported, shift_the_rows))
