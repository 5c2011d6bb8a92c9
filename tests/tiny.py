"""A real ONNX classifier whose right answer is known: class = mean red value of the image.

It goes through the same files, engine and server as any other model, costs next to nothing, and exposes any mix-up of
two requests' pixels or answers. `work` makes each batch slow by real arithmetic.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models import manifest
from models.manifest import (
    Activation,
    Calibration,
    Cascade,
    Confidence,
    Conversion,
    Ensemble,
    HeldOut,
    Label,
    Manifest,
    Member,
    Miscalibration,
    ModelFile,
    OnnxBackend,
    PredictionSets,
    Preprocessing,
    QuantizationTarget,
    Rule,
    Share,
    Stage,
    Unknown,
    Weights,
)

CLASSES = 256
TOP_K = 100
OPSET = 20
_WORK_SIZE = 256


def write(
    repository: Path,
    name: str = "tiny",
    version: int = 1,
    *,
    crop: int = 32,
    work: int = 0,
    channel: int = 0,
    preprocessing: Preprocessing | None = None,
    activation: Activation = "softmax",
    extras: bool = False,
) -> Manifest:
    """Write the model to `repository`; `work` is the number of 256 x 256 matrix products that it adds to each batch.

    `channel` 1 or 2 makes it read green or blue instead of red. `preprocessing` replaces the square centre `crop`.
    With `extras` it has features, the mean colour, and activation maps, one value a pixel: 2 * class * red.
    """
    side = preprocessing.crop if preprocessing else (crop, crop)
    content = _graph(work, channel, activation, side if extras else None).SerializeToString()
    found = Manifest(
        name=name,
        version=version,
        created=datetime.now(UTC),
        architecture="tiny",
        parameters=0,
        weights=Weights(source="made by hand", sha256=None),
        published_accuracy=None,
        preprocessing=preprocessing
        or Preprocessing(resize=crop, crop=crop, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        activation=activation,
        num_classes=CLASSES,
        top_k=TOP_K,
        backend="onnx",
        precision="fp32",
        opset=OPSET,
        file=ModelFile(name="model.onnx", sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)),
        parity=None,
        tools={"onnx": onnx.__version__},
        fingerprint=hashlib.sha256(content).hexdigest(),
        labels=tuple(Label(label=f"red {value}") for value in range(CLASSES)),
        features=3 if extras else None,
        activation_maps=side if extras else None,
    )
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (folder / found.file.name).write_bytes(content)
    (folder / manifest.FILE_NAME).write_text(found.model_dump_json(indent=1))
    return found


def publish(repository: Path, version: int, name: str = "tiny", **options: Any) -> None:
    """Publish a new version atomically, as an export does."""
    aside = repository.parent / f"aside-{version}"
    write(aside, name, version, **options)
    (aside / name / str(version)).rename(repository / name / str(version))


def calibrate(repository: Path, found: Manifest) -> Manifest:
    """Calibrate a model in `repository`: a class at distance d has a probability of exp(-d^2 / 8) / 5.

    Sets for a coverage of up to 0.5 hold the best class, up to 0.8 also its neighbours, and up to 0.99 three classes on
    each side. An image with less red than 50 is unknown.
    """
    from export.temperature import divided

    temperature = 8.0
    folder = repository / found.name / str(found.version)
    content = divided((folder / found.file.name).read_bytes(), temperature)
    made = Confidence(
        temperature=temperature,
        held_out=HeldOut(images=99, before=Miscalibration(ece=0.5, nll=9), after=Miscalibration(ece=0.025, nll=2)),
        sets=PredictionSets(method="lac", images=99, scores=(0.81,) * 50 + (0.85,) * 30 + (0.95,) * 19),
        unknown=Unknown(score="max_logit", threshold=50**2 / temperature, keep_known=0.95, images=99, known=0.95),
    )
    file = ModelFile(name=found.file.name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    changed = Manifest(**dict(found) | {"confidence": made, "file": file})
    (folder / found.file.name).write_bytes(content)
    (folder / manifest.FILE_NAME).write_text(changed.model_dump_json(indent=1))
    return changed


def quantised_for(
    repository: Path,
    target: QuantizationTarget,
    name: str = "tiny-int8",
    source: str = "tiny",
    bound_to: OnnxBackend | None = None,
) -> Manifest:
    """Write the model with a manifest that declares it INT8, for this target and optionally for one backend."""
    base = write(repository, name)
    made = Conversion(
        source=source,
        source_version=1,
        source_sha256=base.file.sha256,
        calibration=Calibration(target=target, method="minmax", images=1, backend=bound_to),
        images=1,
        top1_agreement=1,
        max_logit_error=0,
        accuracy=None,
        source_accuracy=None,
    )
    changes = {"precision": "int8", "conversion": made, "backend": bound_to or base.backend}
    found = Manifest(**dict(base) | changes)
    (repository / name / "1" / manifest.FILE_NAME).write_text(found.model_dump_json(indent=1))
    return found


def write_torch(repository: Path, name: str = "tiny", *, crop: int = 32, poisonous: bool = False) -> Manifest:
    """Write the same classifier as a PyTorch program.

    `poisonous`: an image whose first pixel has 255 green makes it read far outside a tensor. On a GPU the device is
    lost; on a CPU only that batch fails.
    """
    import torch

    from export.program import to_program

    class Tiny(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            red = images[..., :1].float().mean((1, 2))
            classes = torch.arange(CLASSES, dtype=torch.float32)
            logits = 2 * red * classes - classes**2
            if poisonous:
                outside = (images[:, 0, 0, 1] == 255).long() * 2**40
                logits = logits + torch.zeros(1)[outside][:, None]
            probabilities, indices = logits.softmax(1).topk(TOP_K)
            return probabilities, indices.int(), logits

    base = write(repository, name, crop=crop)
    content = to_program(Tiny(), (crop, crop))
    file = ModelFile(name="model.pt2", sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    changes: dict[str, object] = {"backend": "torch", "opset": None, "file": file, "tools": {}}
    found = Manifest(**dict(base) | changes)
    folder = repository / found.name / str(found.version)
    (folder / base.file.name).unlink()
    (folder / file.name).write_bytes(content)
    (folder / manifest.FILE_NAME).write_text(found.model_dump_json(indent=1))
    return found


def write_ensemble(repository: Path, name: str, members: list[Manifest]) -> Ensemble:
    """Write an ensemble of models in `repository`."""
    found = Ensemble(
        name=name,
        version=1,
        created=datetime.now(UTC),
        members=tuple(Member(name=m.name, version=m.version, sha256=m.file.sha256, accuracy=None) for m in members),
        labels=members[0].labels,
        top_k=TOP_K,
        images=0,
        agreement=0.0,
        accuracy=None,
        fingerprint=hashlib.sha256(name.encode()).hexdigest(),
    )
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / manifest.FILE_NAME).write_text(found.model_dump_json(indent=1))
    return found


def write_cascade(
    repository: Path, name: str, members: Sequence[Manifest | Ensemble], rule: Rule | None = None
) -> Cascade:
    """Write a cascade of models and ensembles in `repository`; all members but the last have the same rule.

    The default rule is a margin of 0.2 for the best class: an image whose mean red is a whole number has a margin of
    0.36, one halfway between two numbers has none.
    """
    rule = rule or Rule(kind="margin", threshold=0.2)
    everything = Share(share=1.0, low=0.0, high=1.0)
    found = Cascade(
        name=name,
        version=1,
        created=datetime.now(UTC),
        members=tuple(
            Stage(
                name=member.name,
                version=member.version,
                sha256=member.file.sha256 if isinstance(member, Manifest) else member.fingerprint,
                accuracy=None,
                rule=None if member is members[-1] else rule,
                answered=0.5,
                top1_agreement=everything,
                seconds=0.001,
            )
            for member in members
        ),
        labels=members[0].labels,
        top_k=TOP_K,
        reference=members[-1].name,
        reference_version=1,
        tuned_on=1,
        images=1,
        top1_agreement=everything,
        min_agreement=0.999,
        accuracy=None,
        reference_accuracy=None,
        seconds=0.001,
        fingerprint=hashlib.sha256(name.encode()).hexdigest(),
    )
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / manifest.FILE_NAME).write_text(found.model_dump_json(indent=1))
    return found


def _constant(name: str, values: NDArray[np.generic]) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def _graph(work: int, channel: int, activation: Activation, extras: tuple[int, int] | None = None) -> onnx.ModelProto:
    """logits[c] = 2 * c * red - c^2, largest for the c nearest to the mean red value."""
    classes = np.arange(CLASSES, dtype=np.float32)
    matrix = np.eye(_WORK_SIZE, dtype=np.float32)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("MatMul", ["state", "matrix"], ["next"]),
        ],
        "work",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [_WORK_SIZE, _WORK_SIZE]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [_WORK_SIZE, _WORK_SIZE]),
        ],
    )
    nodes = [
        helper.make_node("Cast", [manifest.INPUT_NAME], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "height_width"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "twice_red_times_class"], ["product"]),
        helper.make_node("Loop", ["work", "", "matrix"], ["worked"], body=body),
        helper.make_node("ReduceMin", ["worked"], ["zero"], keepdims=0),  # any power of the unit matrix
        helper.make_node("Add", ["product", "zero"], ["product_worked"]),
        helper.make_node("Sub", ["product_worked", "class_squared"], [manifest.LOGITS_NAME]),
        helper.make_node("Softmax", [manifest.LOGITS_NAME], ["all"], axis=1)
        if activation == "softmax"
        else helper.make_node("Sigmoid", [manifest.LOGITS_NAME], ["all"]),
        helper.make_node("TopK", ["all", "k"], [manifest.PROBABILITIES_NAME, "indices64"]),
        helper.make_node("Cast", ["indices64"], [manifest.INDICES_NAME], to=TensorProto.INT32),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(manifest.INPUT_NAME, TensorProto.UINT8, ["n", "h", "w", 3])],
        [
            helper.make_tensor_value_info(manifest.PROBABILITIES_NAME, TensorProto.FLOAT, ["n", TOP_K]),
            helper.make_tensor_value_info(manifest.INDICES_NAME, TensorProto.INT32, ["n", TOP_K]),
            helper.make_tensor_value_info(manifest.LOGITS_NAME, TensorProto.FLOAT, ["n", CLASSES]),
        ],
        [
            _constant("height_width", np.array([1, 2], np.int64)),
            _constant("twice_red_times_class", np.outer(np.eye(3, dtype=np.float32)[channel], 2 * classes)),
            _constant("class_squared", classes**2),
            _constant("matrix", matrix),
            _constant("work", np.array(work, np.int64)),
            _constant("k", np.array([TOP_K], np.int64)),
        ],
    )
    if extras:
        graph.node.extend(
            [
                helper.make_node("Identity", ["colour"], [manifest.FEATURES_NAME]),
                helper.make_node("Slice", [manifest.INDICES_NAME, "first", "last", "along"], ["best"]),
                helper.make_node("Transpose", ["twice_red_times_class"], ["weights"], perm=[1, 0]),
                helper.make_node("Gather", ["weights", "best"], ["rows"]),
                helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
                helper.make_node("Reshape", ["planes", "flat"], ["places"]),
                helper.make_node("MatMul", ["rows", "places"], ["flat_maps"]),
                helper.make_node("Reshape", ["flat_maps", "side"], [manifest.ACTIVATION_MAPS_NAME]),
            ]
        )
        shape = [-1, manifest.MAPPED_CLASSES, *extras]
        numbers = {"first": [0], "last": [shape[1]], "along": [1], "flat": [0, 3, -1], "side": shape}
        graph.initializer.extend(_constant(name, np.array(each, np.int64)) for name, each in numbers.items())
        graph.output.extend(
            [
                helper.make_tensor_value_info(manifest.FEATURES_NAME, TensorProto.FLOAT, ["n", 3]),
                helper.make_tensor_value_info(manifest.ACTIVATION_MAPS_NAME, TensorProto.FLOAT, ["n", *shape[1:]]),
            ]
        )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
