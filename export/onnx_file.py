"""Reads a foreign ONNX file: which image classifier it holds, as far as its graph tells. Nothing is run here."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data
from onnx_ir import DataType, Graph, Node, Value, convenience
from onnx_ir.passes import common as passes

from export.graph import silenced
from models import foreign
from models.errors import ExpectedError, first_line

Layout = Literal["nchw", "nhwc"]
Precision = Literal["fp32", "fp16", "int8"]

_ONNX = "is an ONNX file"
LARGEST_BYTES = 2**31 - 1
"""Largest ONNX file with its parameters inside: protobuf's limit for a message."""
_KINDS: Mapping[DataType, "np.dtype[np.generic]"] = {
    DataType.FLOAT: np.dtype(np.float32),
    DataType.FLOAT16: np.dtype(np.float16),
    DataType.DOUBLE: np.dtype(np.float64),
    DataType.UINT8: np.dtype(np.uint8),
}
_FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.DOUBLE)
_PARAMETERS = (*_FLOATS, DataType.BFLOAT16, DataType.INT8, DataType.UINT8)
_INTEGER_OPERATORS = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger")
_SEVEN_BITS = 64
"""Largest weight for which the sum of two products with bytes fits into 16 bits."""
_KEEP_VALUES = (
    *("Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
    *("QuantizeLinear", "DequantizeLinear"),
)
"""Operators that exporters put after a softmax; apart from rounding, they leave each score unchanged."""


class OnnxFileError(ExpectedError):
    """A file holds no image classifier, or none that can be served."""


@dataclass(frozen=True)
class OnnxFile:
    """What is known of a file without running it."""

    path: Path
    content: bytes
    """The file as it was read, with any external data included."""
    model: onnx_ir.Model
    """The part between its only input and its only output, with functions inlined."""
    whole: bool
    """The input is the file's only one, not an inner value."""
    kind: "np.dtype[np.generic]"
    """Type of the input."""
    layout: Layout
    channels: int
    """1 or 3."""
    size: tuple[int | None, int | None]
    """Height and width of the input; None: free."""
    batch: int | None
    """Batch size of the input; None: free."""
    opset: int
    precision: Precision
    needs_vnni: bool
    """Its sums of products overflow on an x86 CPU that adds them in 16 bits."""
    parameters: int
    """Number of trained values."""

    @property
    def input(self) -> Value:
        """The images."""
        return self.model.graph.inputs[0]

    @property
    def output(self) -> Value:
        """A score for each class."""
        return self.model.graph.outputs[0]

    @property
    def activation(self) -> Node | None:
        """The softmax or sigmoid that the scores come from, if the file ends in one."""
        value: Value | None = self.output
        while value is not None and (node := value.producer()) is not None:
            if node.op_type in ("Softmax", "Sigmoid"):
                return node
            if node.op_type not in _KEEP_VALUES:
                return None
            value = node.inputs[0]
        return None

    def __str__(self) -> str:
        """Input and output, for messages."""
        return f"{describe(self.input)} to {describe(self.output)}, opset {self.opset}"


def describe(value: Value) -> str:
    """Describe a value by name, type and shape: images float32[N, 3, 224, 224]."""
    kind = value.dtype.name.lower() if value.dtype else "unknown"
    kind = {"float": "float32", "double": "float64"}.get(kind, kind)
    if value.shape is None:
        return f"{value.name} {kind}"
    return f"{value.name} {kind}[{', '.join('?' if size in (None, 'None') else str(size) for size in value.shape)}]"


def read(path: Path, input_name: str | None, output_name: str | None, layout: Layout | None) -> OnnxFile:
    """Read a file, and find its image input and its scores.

    Args:
        path: of the file; external data are read from the same folder.
        input_name: the value that takes the image; None: the file's only input.
        output_name: the value that has the scores; None: to be detected.
        layout: of the image; None: to be detected.

    Raises:
        OnnxFileError: the file is not an image classifier in ONNX, or its image or its scores are ambiguous.
    """
    content = _read(path)
    proto = onnx.load_model_from_string(content)
    opset = next((one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")), None)
    if opset is None or not proto.graph.node:
        raise OnnxFileError(f"{path} has no graph of ONNX operators in it")
    model = _tidied(path, proto, opset)
    graph = model.graph
    output = _find_output(path, graph, output_name)
    cut = _cut(path, graph, output, input_name)
    model = onnx_ir.Model(cut, ir_version=model.ir_version, producer_name=model.producer_name)
    image, (scores,) = _find_input(path, cut, input_name), cut.outputs
    cut.inputs[:] = [image]
    _check_scores(path, scores)
    kind = _KINDS.get(image.dtype or DataType.UNDEFINED)
    if kind is None:
        raise OnnxFileError(f"{path} takes {describe(image)}: images come as float or uint8")
    if image.shape is None or len(image.shape) != 4:
        raise OnnxFileError(f"{path} takes {describe(image)}, not a batch of images with height, width and channels")
    # Some exporters write a free size as 0 or -1.
    sizes = [size if isinstance(size, int) and size > 0 else None for size in image.shape]
    found, channels = _channels(path, image, sizes, layout)
    known = {tensor.name for tensor in proto.graph.initializer}
    height, width = sizes[2:] if found == "nchw" else sizes[1:3]
    return OnnxFile(
        path=path,
        content=content,
        model=model,
        whole=[value.name for value in proto.graph.input if value.name not in known] == [image.name],
        kind=kind,
        layout=found,
        channels=channels,
        size=(height, width),
        batch=sizes[0],
        opset=opset,
        precision=_precision(cut),
        needs_vnni=_needs_vnni(cut),
        parameters=_count(cut),
    )


def _read(path: Path) -> bytes:
    """Read the file, with any external data included."""
    try:
        what = foreign.file(path)
        is_onnx = what is not None and what.startswith(_ONNX)
        if not is_onnx and what not in (None, foreign.UNKNOWN):
            raise OnnxFileError(f"{path} {what}")
        if path.stat().st_size > LARGEST_BYTES:
            raise OnnxFileError(f"{path} has more than 2 GiB, which no ONNX file has")
        content = path.read_bytes()
        proto = onnx.load_model_from_string(content)
    except OSError as error:
        raise OnnxFileError(f"{path}: {error.strerror}") from error
    except DecodeError as error:
        reason = "is no ONNX file: export/to_onnx.py takes checkpoints"
        if is_onnx:
            reason = "is cut off or damaged: copy it again"
        raise OnnxFileError(f"{path} {reason}") from error
    if not any(map(uses_external_data, proto.graph.initializer)):
        return content
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise OnnxFileError(
            f"{path} keeps its parameters in a file beside it, which cannot be read: put it there under the name it"
            f" had, not as a link ({first_line(error)})"
        ) from error
    if proto.ByteSize() > LARGEST_BYTES:
        raise OnnxFileError(f"{path} has more than 2 GiB of parameters: no single ONNX file can hold them")
    whole: bytes = proto.SerializeToString(deterministic=True)
    return whole


def _tidied(path: Path, proto: onnx.ModelProto, opset: int) -> onnx_ir.Model:
    """Read the graph with functions inlined, and with all parameters as initializers."""
    with silenced():  # shape inference logs what it does not know
        try:
            model = onnx_ir.from_proto(proto)
            model.opset_imports[""] = model.opset_imports.pop("ai.onnx", opset)
            for tidy in (
                passes.RemoveInitializersFromInputsPass(),
                passes.InlinePass(),
                passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
                passes.TopologicalSortPass(),
                passes.ShapeInferencePass(),
            ):
                tidy(model)
        except Exception as failure:  # its errors have no common class
            raise _no_graph(path, failure) from failure
    return model


def _find_output(path: Path, graph: Graph, name: str | None) -> Value:
    if name is not None:
        found = convenience.create_value_mapping(graph, include_subgraphs=False).get(name)
        if found is None:
            raise OnnxFileError(f"{path} has no value {name}; its outputs are {_listed(graph.outputs)}")
        return found
    if len(graph.outputs) == 1:
        return graph.outputs[0]
    # Accept one output of scores beside feature maps whose channels are not as many as the classes.
    scores = [value for value in graph.outputs if _looks_like_scores(value)]
    others = [value for value in graph.outputs if value not in scores]
    if len(scores) != 1 or not all(_looks_like_features(value, scores[0]) for value in others):
        raise OnnxFileError(
            f"{path} has {len(graph.outputs)} outputs, {_listed(graph.outputs)}: name the one that has a score for each"
            " class with --output"
        )
    return scores[0]


def _looks_like_scores(value: Value) -> bool:
    return value.dtype in _FLOATS and value.shape is not None and len(value.shape) == 2


def _looks_like_features(value: Value, scores: Value) -> bool:
    if value.dtype not in _FLOATS or value.shape is None or len(value.shape) < 3 or scores.shape is None:
        return False
    return value.shape[1] != scores.shape[1]


def _cut(path: Path, graph: Graph, output: Value, input_name: str | None) -> Graph:
    """Copy the part of the graph that computes the output from the named input, or from all inputs."""
    starts: list[Value | str] = [input_name] if input_name else list(graph.inputs)
    try:
        return convenience.extract(graph, starts, [output])
    except Exception as failure:  # its errors have no common class
        if input_name is None:
            raise _no_graph(path, failure) from failure
        raise OnnxFileError(
            f"in {path}, {output.name} cannot be computed from {input_name} alone: its inputs are"
            f" {_listed(graph.inputs)}"
        ) from failure


def _find_input(path: Path, cut: Graph, name: str | None) -> Value:
    needed = [value for value in cut.inputs if value.uses()]
    if not needed:
        raise OnnxFileError(f"in {path}, {cut.outputs[0].name} depends on no input" + f" {name}" * bool(name))
    if len(needed) > 1:
        raise OnnxFileError(
            f"{path} needs {len(needed)} inputs, {_listed(needed)}: a classifier here takes an image and nothing else"
            " (--input names the value to begin from)"
        )
    return needed[0]


def _check_scores(path: Path, scores: Value) -> None:
    """Refuse an output that plainly is not a score for each class."""
    if scores.dtype is not None and scores.dtype not in _FLOATS:
        raise OnnxFileError(
            f"{path} gives {describe(scores)}, not scores: name the value with a score for each class with --output"
        )
    if scores.shape is None:
        return
    sizes = [size for size in scores.shape[1:] if size != 1]
    # A single axis is of images if there is one class, as in model(x).squeeze(1), and of classes if it has a size.
    size = scores.shape[0] if len(scores.shape) else 0
    no_batch = len(scores.shape) < 2 and isinstance(size, int) and size != 1
    if no_batch or len(sizes) > 1:
        what = "no row for each image of a batch" if no_batch else "not one score for each class"
        raise OnnxFileError(
            f"{path} gives {describe(scores)}, {what}: only classifiers can be served (--output names another value)"
        )


def _channels(path: Path, image: Value, sizes: list[int | None], wanted: Layout | None) -> tuple[Layout, int]:
    layouts: dict[Layout, int] = {"nchw": 1, "nhwc": 3}
    fitting: list[Layout] = [layout for layout, axis in layouts.items() if sizes[axis] in (1, 3)]
    used = _used_as(image)
    layout = wanted or (fitting[0] if len(fitting) == 1 else used and used[0])
    if layout is None:
        raise OnnxFileError(f"{path} takes {describe(image)}: say with --layout nchw or nhwc where its channels are")
    channels = sizes[layouts[layout]] or (used[1] if used else None) or 3
    if channels not in (1, 3):
        raise OnnxFileError(
            f"{path} takes {describe(image)}, {channels} channels: an image has 3, or 1 where it is grey"
        )
    return layout, channels


def _used_as(image: Value) -> tuple[Layout, int | None] | None:
    """Infer the image's layout and number of channels from the first convolution."""
    layout: Layout = "nchw"
    for node in _downstream(image):
        if node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == (0, 3, 1, 2):
            layout = "nhwc"
        elif node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
            weights = node.inputs[3 if node.op_type == "QLinearConv" else 1]
            shape = weights.shape if weights is not None else None
            size = shape[1] if shape is not None else None
            return layout, size * node.attributes.get_int("group", 1) if isinstance(size, int) else None
    return (layout, None) if layout == "nhwc" else None


def _downstream(value: Value) -> Iterator[Node]:
    """Yield the nodes after a value, the nearest first."""
    waiting, seen = [value], set[Node]()
    while waiting:
        for node, _ in waiting.pop(0).uses():
            if node not in seen:
                seen.add(node)
                waiting.extend(node.outputs)
                yield node


def _precision(graph: Graph) -> Precision:
    if any(node.op_type in _INTEGER_OPERATORS for node in graph):
        return "int8"
    kinds = [
        tensor.dtype for tensor in graph.initializers.values() if tensor.shape is not None and len(tensor.shape) > 1
    ]
    return "fp16" if DataType.FLOAT16 in kinds else "fp32"


def _needs_vnni(graph: Graph) -> bool:
    """Whether 8-bit activations are multiplied by weights of more than 7 bits (`export.quantization`).

    Signed activations do not help: on x86 ONNX Runtime makes them unsigned.
    """
    weights = (tensor.const_value for tensor in graph.initializers.values() if tensor.dtype == DataType.INT8)
    return _precision(graph) == "int8" and any(
        len(weight.shape) > 1 and np.abs(weight.numpy().astype(np.int16)).max(initial=0) > _SEVEN_BITS
        for weight in weights
        if weight is not None
    )


def _count(graph: Graph) -> int:
    """Count the trained values: not batch norm's measured statistics, nor the scales of quantised values."""
    measured = {value for node in graph for value in (node.inputs[3:5] if node.op_type == "BatchNormalization" else ())}
    scales = {value for node in graph if "Linear" in node.op_type for value in node.inputs[1:3]}
    return sum(
        value.const_value.size
        for value in graph.initializers.values()
        if value.const_value is not None and value.dtype in _PARAMETERS and value not in measured | scales
    )


def _no_graph(path: Path, failure: Exception) -> OnnxFileError:
    reason: BaseException = failure
    while reason.__cause__ is not None:  # the outermost only names the function that failed
        reason = reason.__cause__
    return OnnxFileError(f"{path} has an invalid graph: {first_line(reason)}")


def _listed(values: Iterable[Value]) -> str:
    return ", ".join(map(describe, values))
