"""What the protocol tells of the server and its models; as JSON, of which gRPC's messages are another spelling."""

from collections import defaultdict
from collections.abc import Sequence, Sized
from typing import Any

from models.manifest import INDICES_NAME, INPUT_NAME, PROBABILITIES_NAME, Entry
from server import VERSION, metrics
from server.errors import CLIENT_CLOSED, Code, ServiceError
from server.repository import Model
from server.serving.service import Service

Json = dict[str, Any]

ENCODED_NAME = "encoded"
"""Input: BYTES[N], one compressed image an element."""
LABELS_NAME = "labels"
"""Output: BYTES[N, k], what the classes are called."""
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]

_PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


def number(version: str) -> int | None:
    """What the protocol calls a version; "" is the newest.

    Raises:
        ServiceError: UNKNOWN_MODEL.
    """
    if version and not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise ServiceError(Code.UNKNOWN_MODEL, f"a version is a number, which {version[:20]!r} is not")
    return int(version) if version else None


def find(service: Service, name: str, version: str) -> Entry:
    """What a request means; without a version the newest.

    Raises:
        ServiceError: UNKNOWN_MODEL, MODEL_UNAVAILABLE.
    """
    return service.catalogue.resolve(name, number(version))


def input_shape(members: Sequence[Model]) -> tuple[int, int, int] | None:
    """(H, W, 3) of raw pixels; None for an ensemble whose members differ, which takes compressed images only."""
    shapes = {member.manifest.input_shape for member in members}
    return shapes.pop() if len(shapes) == 1 else None


def max_images(service: Service, members: Sequence[Model]) -> int:
    """Most images in one request: each takes one of the worker's places for each member."""
    return max(1, service.settings.slots_per_worker // len(members))


def server_metadata() -> Json:
    """Who answers."""
    return {"name": "resnet-serving", "version": VERSION, "extensions": EXTENSIONS}


def metadata(service: Service, entry: Entry) -> Json:
    """Inputs and outputs of a model; -1 is any number."""
    inputs, outputs = _tensors(service, entry)
    return {
        "name": entry.name,
        "versions": [str(version) for version in _versions(service, entry.name)],
        "platform": _PLATFORMS.get(entry.backend, entry.backend),
        "inputs": [{"name": name, "datatype": kind, "shape": [-1, *dims]} for name, kind, dims in inputs],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1, *dims]} for name, kind, dims in outputs],
    }


def config(service: Service, entry: Entry) -> Json:
    """As far as clients ask. Dimensions leave out the batch; exactly one of the inputs is to be sent."""
    inputs, outputs = _tensors(service, entry)
    return {
        "name": entry.name,
        "platform": _PLATFORMS.get(entry.backend, entry.backend),
        "backend": entry.backend,
        "max_batch_size": max_images(service, service.catalogue.members(entry)),
        "input": [{**_configured(*tensor), "optional": len(inputs) > 1} for tensor in inputs],
        "output": [_configured(*tensor) for tensor in outputs],
    }


def is_ready(service: Service, name: str, version: str) -> bool:
    """Whether requests for this model can be answered now.

    Raises:
        ServiceError: UNKNOWN_MODEL.
    """
    find(service, name, version)
    return service.classifier.connected and not service.draining


def index(service: Service, *, ready: bool) -> list[Json]:
    """All of the repository, or what is `ready`."""
    catalogue = service.catalogue
    served = [
        {"name": key.name, "version": str(key.version), "state": "READY" if service.classifier.connected else "LOADING"}
        for key in sorted(catalogue.entries)
    ]
    if ready:
        return [found for found in served if found["state"] == "READY"]
    refused = [
        {"name": key.name, "version": str(key.version), "state": "UNAVAILABLE", "reason": refusal.reason}
        for key, refusal in sorted(catalogue.refused.items())
    ]
    unloaded = [
        {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
        for name in sorted(catalogue.unloaded)
    ]
    return served + refused + unloaded


def check_load(parameters: Sized) -> None:
    """Only what is in the repository, as it is there, can be loaded.

    Raises:
        ServiceError: INVALID_PARAMETER.
    """
    if parameters:
        detail = "a model is loaded as the repository has it, without parameters"
        raise ServiceError(Code.INVALID_PARAMETER, detail)


def statistics(service: Service, name: str, version: str) -> Json:
    """Counts and cumulative times since the start, of one model or of all; read from files, so not in an event loop.

    The metrics do not tell versions apart: the figures are of all versions of the model.

    Raises:
        ServiceError: UNKNOWN_MODEL.
    """
    if name:
        entries = [find(service, name, version)]
    else:
        entries = [service.catalogue.resolve(each, None) for each in service.catalogue.versions]
    sums: dict[tuple[str, str], float] = defaultdict(float)
    failed: dict[str, float] = defaultdict(float)
    for sample in metrics.samples():
        model = sample.labels.get("model", "")
        sums[sample.name, model] += sample.value
        if sample.name == "serving_requests_total" and sample.labels["code"] not in ("ok", CLIENT_CLOSED):
            failed[model] += sample.value

    def stage(name: str, model: str) -> Json:
        seconds = sums[f"serving_{name}_seconds_sum", model]
        return {"count": int(sums[f"serving_{name}_seconds_count", model]), "ns": int(seconds * 1e9)}

    return {
        "model_stats": [
            {
                "name": entry.name,
                "version": str(entry.version),
                "inference_count": int(sums["serving_decode_seconds_count", entry.name]),
                "execution_count": int(sums["serving_batch_size_count", entry.name]),
                "inference_stats": {
                    "success": stage("request", entry.name),
                    "fail": {"count": int(failed[entry.name]), "ns": 0},
                    "queue": stage("queue", entry.name),
                    "compute_input": stage("decode", entry.name),
                    "compute_infer": stage("inference", entry.name),
                    "compute_output": {"count": 0, "ns": 0},
                },
            }
            for entry in entries
        ]
    }


def _versions(service: Service, name: str) -> list[int]:
    return sorted(service.catalogue.versions[name])


def _tensors(
    service: Service, entry: Entry
) -> tuple[list[tuple[str, str, tuple[int, ...]]], list[tuple[str, str, tuple[int, ...]]]]:
    """(name, datatype, dimensions without the batch) of each input and each output."""
    shape = input_shape(service.catalogue.members(entry))
    pixels = [(INPUT_NAME, "UINT8", tuple(shape))] if shape else []
    outputs = [(PROBABILITIES_NAME, "FP32", (-1,)), (INDICES_NAME, "INT32", (-1,)), (LABELS_NAME, "BYTES", (-1,))]
    return [*pixels, (ENCODED_NAME, "BYTES", ())], [*outputs]


def _configured(name: str, datatype: str, dims: tuple[int, ...]) -> Json:
    return {"name": name, "data_type": _CONFIG_TYPES.get(datatype, f"TYPE_{datatype}"), "dims": list(dims)}
