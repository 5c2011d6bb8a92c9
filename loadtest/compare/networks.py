"""The networks that servers run: a model of the repository, and one of the same shapes that costs next to nothing.

Our server gets the complete graph, from uint8 pixels to ranked classes; the rivals get the network alone, from float32
pixels to logits, cut out of that graph.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, helper, numpy_helper
from onnx.utils import Extractor

from loadtest.command import LoadTestError
from loadtest.processes import ROOT

TINY = "tiny"
_SEED = 0
_SPREAD = 5.0
"""Of the tiny network's weights: large enough that photos differ in their best class."""


class PrepareError(LoadTestError):
    """A model cannot be prepared; the message says why."""


@dataclass(frozen=True, slots=True)
class Work:
    """One network, as our server and the rivals get it."""

    name: str
    repository: Path
    """where our server finds `name`"""
    int8: str | None
    """name of the same network in INT8 for OpenVINO, if the repository has it"""
    cascade: str | None
    """name of a cascade that asks it only when a quicker model is not sure, if the repository has one"""
    network: Path
    """what the rivals run: float32[N, 3, H, W] in, float32[N, classes] out"""
    preprocessing: dict[str, Any]
    """from the manifest, `crop` as height and width"""


def export(repository: Path, name: str, photos: Path) -> None:
    """Export the model if the repository lacks it, with random weights and an INT8 variant beside it.

    Raises:
        PrepareError: a command of `export/` fails.
    """
    if (repository / name).is_dir():
        return
    into = ("--repository", str(repository))
    _run("export/to_onnx.py", name, "--random-weights", *into)
    # With random weights, classes are so close that INT8 may well decide otherwise.
    gate = ("--min-agreement", "0", "--seconds", "0")
    _run("export/quantize.py", name, "--backend", "openvino", "--calibration", str(photos), *gate, *into)


def real(repository: Path, name: str, folder: Path) -> Work:
    """The model itself; the file for the rivals is written to `folder`.

    Raises:
        PrepareError: the repository does not have it, or its graph is not one of our exports.
    """
    manifest, model = _read(repository, name)
    path = folder / f"{name}.onnx"
    onnx.save(_Cuts.of(model).extract_network(model), path)
    cascade = _cascade(repository, name)
    return Work(name, repository, _int8(repository, name), cascade, path, _preprocessing(manifest))


def tiny(repository: Path, like: str, folder: Path) -> Work:
    """A network from mean colour to classes in the shapes of the model `like`, so that only the server has a cost.

    Raises:
        PrepareError: as `real`.
    """
    manifest, model = _read(repository, like)
    cuts = _Cuts.of(model)
    network = _mean_colour(cuts, cuts.extract_network(model), manifest["num_classes"])
    path = folder / f"{TINY}.onnx"
    onnx.save(network, path)
    complete = _exchange(model, cuts, network).SerializeToString()
    digest = hashlib.sha256(complete).hexdigest()
    changes = {
        "name": TINY,
        "version": 1,
        "architecture": TINY,
        "weights": {"source": f"random, seed {_SEED}", "sha256": None, "random": True},
        "published_accuracy": None,
        "parity": None,
        "features": None,
        "activation_maps": None,
        "file": {"name": path.name, "sha256": digest, "size_bytes": len(complete)},
        "fingerprint": digest,
    }
    version = folder / "repository" / TINY / "1"
    version.mkdir(parents=True)
    (version / path.name).write_bytes(complete)
    (version / "manifest.json").write_text(json.dumps(manifest | changes))
    return Work(TINY, folder / "repository", None, None, path, _preprocessing(manifest))


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Where the network begins and ends in a complete graph."""

    images: str
    pixels: str
    """normalised float32[N, 3, H, W]"""
    logits: str
    ranked: tuple[str, ...]
    """probabilities and indices"""

    @classmethod
    def of(cls, model: ModelProto) -> "_Cuts":
        *ranked, logits = [output.name for output in model.graph.output][:3]  # features and maps come after
        first = next((node for node in model.graph.node if node.op_type == "Conv"), None)
        if first is None or len(ranked) != 2:
            raise PrepareError("this is not a graph of a convolutional network made by export/to_onnx.py")
        return cls(model.graph.input[0].name, first.input[0], logits, tuple(ranked))

    def extract_network(self, model: ModelProto) -> ModelProto:
        return Extractor(model).extract_model([self.pixels], [self.logits])


def _mean_colour(cuts: _Cuts, network: ModelProto, num_classes: int) -> ModelProto:
    """A network with the inputs and outputs of another: mean colour times a random matrix."""
    random = np.random.default_rng(_SEED)
    weights = {
        "colour_to_class": _SPREAD * random.standard_normal((3, num_classes), np.float32),
        "bias": random.standard_normal(num_classes, np.float32),
    }
    nodes = [
        helper.make_node("GlobalAveragePool", [cuts.pixels], ["mean_colour"]),
        helper.make_node("Flatten", ["mean_colour"], ["colour"]),
        helper.make_node("Gemm", ["colour", *weights], [cuts.logits]),
    ]
    constants = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, TINY, network.graph.input, network.graph.output, constants)
    return _checked(graph, network)


def _exchange(model: ModelProto, cuts: _Cuts, network: ModelProto) -> ModelProto:
    """A complete graph with another network in it."""
    extractor = Extractor(model)
    before = extractor.extract_model([cuts.images], [cuts.pixels]).graph
    after = extractor.extract_model([cuts.logits], list(cuts.ranked)).graph
    parts: list[GraphProto] = [before, network.graph, after]
    graph = helper.make_graph(
        [node for part in parts for node in part.node],
        network.graph.name,
        model.graph.input,
        model.graph.output[:3],
        [constant for part in parts for constant in part.initializer],
    )
    return _checked(graph, model)


def _checked(graph: GraphProto, like: ModelProto) -> ModelProto:
    model = helper.make_model(graph, opset_imports=like.opset_import, ir_version=like.ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def _run(*command: str) -> None:
    print("$", " ".join(command), flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:  # noqa: S603
        raise PrepareError(f"{command[0]} failed")


def _versions(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted((path for path in folder.glob("[1-9]*")), key=lambda path: int(path.name), reverse=True)


def _read(repository: Path, name: str) -> tuple[dict[str, Any], ModelProto]:
    try:
        newest = _versions(repository / name)[0]
        manifest = json.loads((newest / "manifest.json").read_bytes())
        model = onnx.load(newest / manifest["file"]["name"])
    except (OSError, LookupError, ValueError) as error:
        raise PrepareError(f"{repository / name} has no ONNX model: {error}") from error
    return manifest, onnx.shape_inference.infer_shapes(model)


def _preprocessing(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["preprocessing"]
    usual = {"crop_mode": "centre", "channels": "rgb"}
    other = [str(found[name]) for name, value in usual.items() if found.get(name, value) != value]
    if manifest.get("activation") == "sigmoid":
        other.append("sigmoid")
    if other:
        raise PrepareError(f"the rivals crop the centre, see RGB and compute softmax, not {' and '.join(other)}")
    crop = found["crop"]
    return found | {"crop": [crop, crop] if isinstance(crop, int) else crop}  # a number in older manifests


def _int8(repository: Path, name: str) -> str | None:
    for found in _newest(repository):
        made = found.get("conversion") or {}
        if (found["backend"], found.get("precision"), made.get("source")) == ("openvino", "int8", name):
            return str(found["name"])
    return None


def _cascade(repository: Path, name: str) -> str | None:
    for found in _newest(repository):
        if found["backend"] == "cascade" and found["members"][-1]["name"] == name:
            return str(found["name"])
    return None


def _newest(repository: Path) -> Iterator[dict[str, Any]]:
    for folder in sorted(repository.glob("*")):
        for version in _versions(folder)[:1]:
            yield json.loads((version / "manifest.json").read_bytes())
