"""Requests and responses of other servers' protocols, for OpenAPI only: the routes parse and write JSON themselves."""

from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from server.http import huggingface, v1, v2


class Live(Struct):
    """The process answers."""

    live: bool


class Ready(Struct):
    """Whether the server can answer requests, and if not, why."""

    ready: bool
    error: str | UnsetType = UNSET


class ModelReady(Struct):
    """Whether one model can answer requests."""

    name: str
    ready: bool


class ServerMetadata(Struct):
    """Name, version and protocol extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Struct):
    """One input or output; -1 in `shape` stands for any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct):
    """Inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfiguredInput(Struct):
    """One input of a model."""

    name: str
    data_type: str
    dims: list[int]
    format: str
    optional: bool


class ConfiguredOutput(Struct):
    """One output of a model."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(Struct):
    """The fields that clients use. Dimensions leave out the batch; send exactly one of the inputs."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfiguredInput]
    output: list[ConfiguredOutput]


class Duration(Struct):
    """A count, and the total time in nanoseconds."""

    count: int
    ns: int


class ModelStatistics(Struct):
    """Statistics of one version since the server started."""

    name: str
    version: str
    inference_count: int
    execution_count: int
    inference_stats: dict[str, Duration]


class Statistics(Struct):
    """Statistics of each requested version."""

    model_stats: list[ModelStatistics]


class IndexEntry(Struct):
    """One version in the repository; `reason` says why it is not served."""

    name: str
    version: str
    state: str
    reason: str | UnsetType = UNSET


class OutputTensor(Struct):
    """An output with `data`, or with the parameter `binary_data_size` for bytes after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | UnsetType = UNSET
    data: list[float | str] | UnsetType = UNSET


class InferAnswer(Struct):
    """The requested outputs."""

    model_name: str
    model_version: str
    parameters: dict[str, bool | int | float | str]
    outputs: list[OutputTensor]
    id: str | UnsetType = UNSET


class Names(Struct):
    """The models that are served."""

    models: list[str]


class Score(Struct):
    """One class; a list of them has the most probable first."""

    label: str
    score: float


class RankedScore(Score):
    """One class, with its index."""

    class_id: int


class Predictions(Struct):
    """The classes of each instance, in the order of the request."""

    predictions: list[list[RankedScore]]


class Described(NamedTuple):
    """One operation; None where it has no such content."""

    summary: str
    answer: Any
    example: Any
    takes: Any = None
    sent: Any = None
    also: str | None = None
    """Media type of the bytes that the operation accepts besides JSON."""


_PHOTO = "<the photo in Base64>"
_INFER = Described(
    "Classify images",
    InferAnswer,
    {
        "model_name": "efficientnet_lite0",
        "model_version": "1",
        "parameters": {},
        "outputs": [{"name": "indices", "datatype": "INT32", "shape": [1, 2], "data": [967, 968]}],
    },
    v2.Infer,
    {
        "inputs": [
            {"name": "encoded", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 91814}},
        ],
        "outputs": [{"name": "indices", "parameters": {"classification": 2}}],
    },
    "application/octet-stream",
)
_METADATA = Described(
    "Inputs and outputs of a model",
    ModelMetadata,
    {
        "name": "efficientnet_lite0",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, -1]}],
    },
)
_CONFIG = Described(
    "A model's configuration",
    ModelConfig,
    {
        "name": "efficientnet_lite0",
        "platform": "onnxruntime_onnx",
        "backend": "onnx",
        "max_batch_size": 64,
        "input": [
            {"name": "encoded", "data_type": "TYPE_STRING", "dims": [1], "format": "FORMAT_NONE", "optional": True}
        ],
        "output": [{"name": "probabilities", "data_type": "TYPE_FP32", "dims": [-1]}],
    },
)
_READY = Described("Whether a model can answer", ModelReady, {"name": "efficientnet_lite0", "ready": True})
_STATISTICS = Described(
    "Counts and times of a model",
    Statistics,
    {
        "model_stats": [
            {
                "name": "efficientnet_lite0",
                "version": "1",
                "inference_count": 5,
                "execution_count": 4,
                "inference_stats": {"success": {"count": 5, "ns": 41370000}},
            }
        ]
    },
)
_SCORES = Described(
    "Classify an image",
    list[Score],
    [{"label": "espresso", "score": 0.9355872}],
    huggingface.Inputs,
    {"inputs": _PHOTO, "parameters": {"top_k": 1}},
    "application/octet-stream",
)

OPERATIONS: dict[str, Described] = {
    "v1_names": Described("The served models", Names, {"models": ["efficientnet_lite0"]}),
    "v1_ready": _READY,
    "v1_predict": Described(
        "Classify images",
        Predictions,
        {"predictions": [[{"label": "espresso", "score": 0.9355872, "class_id": 967}]]},
        v1.Predict,
        {"instances": [{"b64": _PHOTO}], "parameters": {"top_k": 1}},
    ),
    "v2_server_metadata": Described(
        "Name and version of the server",
        ServerMetadata,
        {"name": "resnet-serving", "version": "0.1.0", "extensions": ["statistics"]},
    ),
    "v2_live": Described("Whether the process answers", Live, {"live": True}),
    "v2_ready": Described("Whether requests can be answered", Ready, {"ready": True}),
    "v2_all_statistics": _STATISTICS._replace(summary="Counts and times of all models"),
    "v2_statistics": _STATISTICS,
    "v2_metadata": _METADATA,
    "v2_config": _CONFIG,
    "v2_model_ready": _READY,
    "v2_model_infer": _INFER,
    "v2_index": Described(
        "The models in the repository",
        list[IndexEntry],
        [{"name": "efficientnet_lite0", "version": "1", "state": "READY"}],
        v2.Index,
        {"ready": True},
    ),
    "v2_load": Described("Load a model, or its new versions", None, None, v2.Load, {}),
    "v2_unload": Described("Stop serving a model", None, None, v2.Load, {}),
    "huggingface_classify": _SCORES._replace(summary="Classify an image by the default model"),
    "huggingface_classify_by": _SCORES,
}
"""By operation id; routes with a version share the entry of the route without one."""
NOT_READY = {"v1_ready", "v2_ready", "v2_model_ready"}
"""Operations that answer 503 with the same content as 200."""


def kinds() -> list[Any]:
    """All types that OPERATIONS refers to."""
    return [kind for each in OPERATIONS.values() for kind in (each.answer, each.takes) if kind is not None]


def schema(kind: Any, template: str) -> dict[str, Any]:
    """The schema of a type, by reference if it has a name."""
    found: dict[str, Any] = msgspec.json.schema_components([kind], ref_template=template)[0][0]
    return found
