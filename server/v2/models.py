"""The protocol's data about the server and its models, as JSON; gRPC's messages are parsed from the same."""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from models.manifest import (
    ACTIVATION_MAPS_NAME,
    FEATURES_NAME,
    INDICES_NAME,
    INPUT_NAME,
    LOGITS_NAME,
    PROBABILITIES_NAME,
    Entry,
    Manifest,
)
from server import VERSION, metrics
from server.errors import Code, ServiceError
from server.repository import Model
from server.serving.loads import State
from server.serving.service import Service
from server.v2 import views
from server.v2.views import SCORES_NAME, Found, InputSpec, View

Json = dict[str, Any]

LABELS_NAME = "labels"
"""Output: BYTES[N, k], the classes' labels."""
BOXES_NAME = "activation_boxes"
"""Output: FP32[N, 4], the part of each photo that its activation maps cover; see `Preprocessing.shown`."""
KNOWN_NAME = "known"
"""Output of a calibrated model: BOOL[N, 1], whether an image belongs to any of the classes."""
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]

SHARED_MEMORY = frozenset({"shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"})
"""Parameters of a tensor in registered shared memory, which this server does not support."""
NO_SHARED_MEMORY = "this server does not support shared memory: send tensors in the messages, and receive them there"

_STATES: dict[State, Json] = {
    "loaded": {"state": "READY"},
    "loading": {"state": "LOADING"},
    "unloaded": {"state": "UNAVAILABLE", "reason": "not loaded: the next request for it loads it"},
}
_PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}
_FORMATS = {INPUT_NAME: "FORMAT_NHWC"}


def number(version: str) -> int | None:
    """A version in the protocol as a number; None for "", which is the newest.

    Raises:
        ServiceError: UNKNOWN_MODEL.
    """
    if version and not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise ServiceError(Code.UNKNOWN_MODEL, f"a version is a number, which {version[:20]!r} is not")
    return int(version) if version else None


def find(service: Service, name: str, version: str) -> Found:
    """The model that a request names; without a version the newest.

    Raises:
        ServiceError: UNKNOWN_MODEL, MODEL_UNAVAILABLE.
    """
    model, view = views.parted(name)
    entry = service.catalogue.resolve(model, number(version))
    inputs_of(view, service.catalogue.members(entry))
    return Found(entry, view)


def input_shape(members: Sequence[Model]) -> tuple[int, int, int] | None:
    """(H, W, 3) of raw pixels; None if members differ: such a model takes compressed images only."""
    shapes = {member.manifest.input_shape for member in members}
    return shapes.pop() if len(shapes) == 1 else None


def inputs_of(view: View, members: Sequence[Model]) -> list[InputSpec]:
    """The inputs that a view of a model takes; a request sends one of them.

    Raises:
        ServiceError: UNKNOWN_MODEL, the model has no such view.
    """
    specs = views.inputs(view, input_shape(members))
    if not specs:
        detail = f"its members take images of different sizes: this model has no view but {View.ENCODED}"
        raise ServiceError(Code.UNKNOWN_MODEL, detail)
    return specs


def max_images(service: Service, entry: Entry) -> int:
    """Most images in one request: each takes one of the worker's slots, in an ensemble one for each member."""
    return max(1, service.settings.slots_per_worker // service.catalogue.permits(entry))


def server_metadata() -> Json:
    """Name, version and protocol extensions of the server."""
    return {"name": "resnet-serving", "version": VERSION, "extensions": EXTENSIONS}


def metadata(service: Service, found: Found) -> Json:
    """Inputs and outputs of a model; -1 stands for any number."""
    entry = found.entry
    inputs, outputs = _tensors(service, found)
    return {
        "name": found.name,
        "versions": [str(version) for version in _versions(service, entry.name)],
        "platform": _PLATFORMS.get(entry.backend, entry.backend),
        "inputs": [{"name": name, "datatype": kind, "shape": [-1, *dims]} for name, kind, dims in inputs],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1, *dims]} for name, kind, dims in outputs],
    }


def config(service: Service, found: Found) -> Json:
    """The fields that clients use. Dimensions leave out the batch; a request sends exactly one of the inputs."""
    entry = found.entry
    inputs, outputs = _tensors(service, found)
    return {
        "name": found.name,
        "platform": _PLATFORMS.get(entry.backend, entry.backend),
        "backend": entry.backend,
        "max_batch_size": max_images(service, entry),
        "input": [
            {**_configured(*spec), "format": _FORMATS.get(spec.name, "FORMAT_NONE"), "optional": len(inputs) > 1}
            for spec in inputs
        ],
        "output": [_configured(*tensor) for tensor in outputs],
    }


def is_ready(service: Service, name: str, version: str) -> bool:
    """Whether requests for this model can be answered now.

    Raises:
        ServiceError: UNKNOWN_MODEL.
    """
    return service.can_answer(find(service, name, version).entry) and not service.draining


def index(service: Service, *, ready: bool) -> list[Json]:
    """All models in the repository, or only those that are `ready`."""
    catalogue = service.catalogue
    served = [
        {"name": key.name, "version": str(key.version), **_STATES[service.state(entry)]}
        for key, entry in sorted(catalogue.entries.items())
    ]
    if ready:
        return [found for found in served if found["state"] == "READY"]
    refused = [
        {"name": key.name, "version": str(key.version or ""), "state": "UNAVAILABLE", "reason": refusal.reason}
        for key, refusal in sorted(catalogue.refused.items())
    ]
    unloaded = [
        {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
        for name in sorted(catalogue.unloaded)
    ]
    return served + refused + unloaded


def check_load(parameters: Sized) -> None:
    """Refuse parameters: models are loaded only as they are in the repository.

    Raises:
        ServiceError: INVALID_PARAMETER.
    """
    if parameters:
        detail = "a model is loaded as the repository has it, without parameters: no config, no files"
        raise ServiceError(Code.INVALID_PARAMETER, detail)


def check_unload(parameters: Mapping[str, object]) -> None:
    """Refuse all parameters but `unload_dependents=false`: unloading an ensemble or cascade keeps its members.

    Raises:
        ServiceError: INVALID_PARAMETER.
    """
    for name, value in parameters.items():
        if name != "unload_dependents" or value is not False:
            detail = f"a model is unloaded alone: the only parameter is unload_dependents=false, not {name[:100]}"
            raise ServiceError(Code.INVALID_PARAMETER, detail)


def statistics(service: Service, name: str, version: str) -> Json:
    """Counts and cumulative times since the start: of one model or all, of one version or each that is served.

    Reads files, so not for the event loop.

    Raises:
        ServiceError: UNKNOWN_MODEL.
    """
    if name:
        asked = find(service, name, version)
        versions = service.catalogue.versions[asked.entry.name]
        found = [asked] if version else [Found(versions[each], asked.view) for each in sorted(versions)]
    else:
        found = [Found(entry) for _, entry in sorted(service.catalogue.entries.items())]
    sums: dict[tuple[str, ...], float] = defaultdict(float)
    for sample in metrics.samples():
        labels = sample.labels
        key = sample.name, labels.get("model", ""), labels.get("version", ""), labels.get("stage", "")
        sums[key] += sample.value
    return {"model_stats": [_statistics(each, sums) for each in found]}


def _statistics(found: Found, sums: Mapping[tuple[str, ...], float]) -> Json:
    """Triton's statistics: each stage counts every answered request, except those answered from the cache."""
    entry = found.entry
    key = entry.name, str(entry.version)

    def stage(name: str) -> Json:
        return _duration(sums, "request_stage_seconds", *key, name)

    success = _duration(sums, "request_seconds", *key, "")
    computed = stage("inference")
    batches = int(sums["serving_batch_size_count", *key, ""]) if isinstance(entry, Manifest) else success["count"]
    return {
        "name": found.name,
        "version": str(entry.version),
        "inference_count": int(sums["serving_images_total", *key, ""]),
        "execution_count": batches,
        "inference_stats": {
            "success": success,
            "fail": stage("failed"),
            "queue": stage("queue"),
            "compute_input": stage("decode"),
            "compute_infer": computed,
            "compute_output": {**computed, "ns": 0},
            "cache_hit": stage("remembered"),
            "cache_miss": {"count": 0, "ns": 0},
        },
    }


def _duration(sums: Mapping[tuple[str, ...], float], name: str, *labels: str) -> Json:
    count, seconds = (sums[f"serving_{name}_{kind}", *labels] for kind in ("count", "sum"))
    return {"count": int(count), "ns": int(seconds * 1e9)}


def _versions(service: Service, name: str) -> list[int]:
    return sorted(service.catalogue.versions[name])


def _tensors(service: Service, found: Found) -> tuple[list[InputSpec], list[tuple[str, str, tuple[int, ...]]]]:
    """(name, datatype, dimensions without the batch) of each input and each output."""
    inputs = inputs_of(found.view, service.catalogue.members(found.entry))
    if found.view:
        return inputs, [(SCORES_NAME, "FP32", (len(found.entry.labels),))]
    outputs: list[tuple[str, str, tuple[int, ...]]] = [
        (PROBABILITIES_NAME, "FP32", (-1,)),
        (INDICES_NAME, "INT32", (-1,)),
        (LABELS_NAME, "BYTES", (-1,)),
    ]
    entry = found.entry
    if isinstance(entry, Manifest):
        outputs.append((LOGITS_NAME, "FP32", (entry.num_classes,)))
    if isinstance(entry, Manifest) and entry.features and entry.activation_maps:
        outputs.append((FEATURES_NAME, "FP32", (entry.features,)))
        outputs.append((ACTIVATION_MAPS_NAME, "FP32", (-1, *entry.activation_maps)))
        outputs.append((BOXES_NAME, "FP32", (4,)))
    if isinstance(entry, Manifest) and entry.confidence and entry.confidence.unknown:
        outputs.append((KNOWN_NAME, "BOOL", (1,)))
    return inputs, outputs


def _configured(name: str, datatype: str, dims: tuple[int, ...]) -> Json:
    return {"name": name, "data_type": _CONFIG_TYPES.get(datatype, f"TYPE_{datatype}"), "dims": list(dims)}
