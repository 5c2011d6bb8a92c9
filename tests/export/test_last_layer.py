"""Recognising networks that end in global average pooling and one linear layer, however it is written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import last_layer
from models.manifest import EXTRA_NAMES, INDICES_NAME, LOGITS_NAME

C, H, W, CLASSES = 6, 3, 4, 7
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.standard_normal((CLASSES, C)).astype(np.float32)
BIAS = RANDOM.standard_normal(CLASSES).astype(np.float32)
MAP = RANDOM.standard_normal((2, C, H, W)).astype(np.float32)
GEMM = helper.make_node("Gemm", ["row", "weights", "bias"], ["logits"], transB=1)
POOL = helper.make_node("GlobalAveragePool", ["map"], ["pooled"])
FLAT = helper.make_node("Flatten", ["pooled"], ["row"])

ENDINGS: dict[str, tuple[Sequence[onnx.NodeProto], str]] = {
    "PyTorch": ([helper.make_node("ReduceMean", ["map", "axes"], ["row"], keepdims=0), GEMM], "nchw"),
    "torchvision, older": ([POOL, FLAT, GEMM], "nchw"),
    "Caffe": ([helper.make_node("AveragePool", ["map"], ["pooled"], kernel_shape=[H, W]), FLAT, GEMM], "nchw"),
    "TensorFlow": (
        [
            helper.make_node("ReduceMean", ["map", "axes_nhwc"], ["row"], keepdims=0),
            helper.make_node("MatMul", ["row", "transposed"], ["sums"]),
            helper.make_node("Add", ["sums", "bias"], ["logits"]),
        ],
        "nhwc",
    ),
}
OTHERS: dict[str, Sequence[onnx.NodeProto]] = {
    "the largest value": [helper.make_node("GlobalMaxPool", ["map"], ["pooled"]), FLAT, GEMM],
    "a part of the map": [
        helper.make_node("AveragePool", ["map"], ["pooled"], kernel_shape=[H, 2], strides=[1, 4]),
        FLAT,
        GEMM,
    ],
    "two layers": [POOL, FLAT, GEMM, helper.make_node("Relu", ["logits"], ["last"])],
}


def more(nodes: Sequence[onnx.NodeProto], shape: Sequence[int]) -> bytes:
    """A graph with these last nodes after the last feature map, and all the extras it can output."""
    *rest, last = nodes
    ending = onnx.NodeProto()
    ending.CopyFrom(last)
    ending.output[0] = LOGITS_NAME
    ranking = [
        helper.make_node("TopK", [LOGITS_NAME, "k"], ["best", "indices64"]),
        helper.make_node("Cast", ["indices64"], [INDICES_NAME], to=TensorProto.INT32),
    ]
    named = [
        helper.make_node(node.op_type, ["inner" if name == LOGITS_NAME else name for name in node.input], node.output)
        if LOGITS_NAME in node.input
        else node
        for node in [*rest, ending]
    ]
    for node in named[:-1]:
        node.output[0] = "inner" if node.output[0] == LOGITS_NAME else node.output[0]
    constants = {
        "weights": WEIGHTS,
        "transposed": WEIGHTS.T.copy(),
        "bias": BIAS,
        "axes": np.array([2, 3]),
        "axes_nhwc": np.array([1, 2]),
        "k": np.array([CLASSES]),
    }
    used = {name for node in [*named, *ranking] for name in node.input}
    graph = helper.make_graph(
        [*named, *ranking],
        "end",
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", *shape])],
        [
            helper.make_tensor_value_info(LOGITS_NAME, TensorProto.FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info(INDICES_NAME, TensorProto.INT32, ["N", CLASSES]),
        ],
        [numpy_helper.from_array(values, name) for name, values in constants.items() if name in used],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = onnx_ir.from_proto(proto)
    last_layer.answer_more(model)
    made = onnx_ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    content: bytes = made.SerializeToString()
    return content


@pytest.mark.parametrize("name", ENDINGS)
def test_features_and_maps_are_found_however_the_end_is_written(name: str) -> None:
    nodes, layout = ENDINGS[name]
    image = MAP if layout == "nchw" else np.ascontiguousarray(MAP.transpose(0, 2, 3, 1))
    content = more([onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes], image.shape[1:])
    assert last_layer.sizes(content) == (C, (H, W))
    names = [LOGITS_NAME, INDICES_NAME, *EXTRA_NAMES]
    outputs: list[Any] = onnxruntime.InferenceSession(content).run(names, {"map": image})
    logits, indices, features, maps = outputs
    best = indices[:, :5]
    np.testing.assert_allclose(features, MAP.mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(maps, np.einsum("nkc,nchw->nkhw", WEIGHTS[best], MAP), atol=1e-5)
    bias, temperature = last_layer.head(content)
    assert bias is not None
    np.testing.assert_allclose(maps.mean((2, 3)) + bias[best], np.take_along_axis(logits, best, 1), atol=1e-5)
    assert temperature == 1


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_that_ends_otherwise_has_neither(name: str) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in OTHERS[name]]
    shape = (C, H, W)
    assert last_layer.sizes(more(nodes, shape)) == (None, None)
