"""Engines are really built here, ahead of time for RTX GPUs; running them is tested only on such a GPU."""

import hashlib
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import convert, engine, quantization, repository, to_trt
from export.engine import EngineError
from export.recipe import OPSET, plan
from export.samples import PHOTOS
from models import manifest
from models.manifest import Calibration, Conversion, Manifest, ManifestError, ModelFile
from server.cuda import Gpu
from server.engine.backends.tensorrt import TITLES
from tests.export.conftest import export
from tests.export.drafts import everything

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")

SMALL, DEEP = "cifar_resnet20", "resnet152"
H200 = Gpu("NVIDIA H200", "sm90")
RTX4090 = Gpu("NVIDIA GeForce RTX 4090", "sm89")


def publish(root: Path, name: str, model: bytes, precision: Literal["fp32", "int8"] = "fp32") -> Manifest:
    """Add an untrained network's ONNX file, in any precision, without comparing it with PyTorch."""
    recipe = plan(name, random=True)
    made = Conversion(
        source=name,
        source_version=1,
        source_sha256="0" * 64,
        calibration=Calibration(target="gpu", method="minmax", images=4),
        images=4,
        top1_agreement=1,
        max_logit_error=0,
        accuracy=None,
        source_accuracy=None,
    )
    draft = Manifest(
        name=name if precision == "fp32" else f"{name}-{precision}",
        version=1,
        created=datetime.now(UTC),
        architecture=recipe.architecture,
        parameters=0,
        weights=recipe.describe_weights(None),
        published_accuracy=None,
        preprocessing=recipe.preprocessing,
        num_classes=recipe.num_classes,
        top_k=recipe.top_k,
        backend="onnx",
        precision=precision,
        opset=OPSET,
        file=ModelFile(name="model.onnx", sha256=hashlib.sha256(model).hexdigest(), size_bytes=len(model)),
        parity=None,
        tools={},
        fingerprint=hashlib.sha256(model).hexdigest(),
        labels=recipe.labels,
        conversion=made if precision == "int8" else None,
    )
    return repository.publish(root, draft, model)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with untrained networks in FP32 and INT8."""
    root = tmp_path_factory.mktemp("repository")
    for name in (SMALL, "resnet18", DEEP):
        recipe = plan(name, random=True)
        model = export(recipe, recipe.build(None))
        publish(root, name, model)
        if name != DEEP:  # quantising it takes a minute
            images = np.random.default_rng(0).integers(0, 256, (4, *recipe.preprocessing.crop, 3), np.uint8)
            publish(root, name, quantization.Calibrated(model, images).quantize("gpu", "minmax"), "int8")
    return root


@pytest.fixture
def build(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Manifest]:
    """Run the command, and read the newest engine, which it added."""

    def run(network: str, *arguments: str) -> Manifest:
        assert to_trt.main([network, *arguments, "--repository", str(root)]) == 0, capsys.readouterr().err
        newest = max(root.glob("*-rtx-*/*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
        return manifest.read(newest.parent)

    return run


def test_interrupt_ends_a_build_and_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(root)

    def interrupt(*_: object, **__: object) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr("rich.progress.Progress.add_task", interrupt)
    monkeypatch.setattr("rich.progress.Progress.update", lambda *_, **__: None)
    monkeypatch.setattr("rich.progress.Progress.remove_task", lambda *_: None)
    assert to_trt.main([SMALL, "--target", "sm89", "--repository", str(root)]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert everything(root) == before


@pytest.mark.parametrize(
    ("network", "precision"),
    [
        (SMALL, "fp32"),
        (SMALL, "fp16"),
        (SMALL, "int8"),
        ("resnet18", "fp32"),
        ("resnet18", "fp16"),
        ("resnet18", "int8"),
        (DEEP, "fp16"),
    ],
)
def test_engine_is_built_and_its_manifest_says_what_it_is(
    root: Path, build: Callable[..., Manifest], network: str, precision: str
) -> None:
    built = build(network, "--precision", precision, "--target", "sm89")
    source = manifest.read(root / (network + "-int8" * (precision == "int8")) / "1")
    record = built.tensorrt
    assert record is not None
    assert (built.name, built.backend, built.precision) == (f"{network}-rtx-{precision}-sm89", "tensorrt", precision)
    assert (record.flavour, record.compute_capabilities, record.gpu) == ("tensorrt_rtx", ("sm89",), None)
    assert [(one.smallest, one.largest) for one in record.profiles] == [(1, 1), (2, 2), (3, 4), (5, 8)]
    assert record.onnx_sha256 == source.file.sha256
    assert record.version == built.tools["tensorrt_rtx"]
    assert built.labels == source.labels
    assert built.preprocessing == source.preprocessing
    content = manifest.read_model_file(root / built.name / str(built.version), built)
    assert content.startswith(b"vtrt")


def test_half_precision_halves_the_engine(build: Callable[..., Manifest]) -> None:
    sizes = [build("resnet18", "--precision", one, "--target", "sm86").file.size_bytes for one in ("fp32", "fp16")]
    assert sizes[1] < 0.55 * sizes[0]


def test_one_engine_may_be_for_several_targets(build: Callable[..., Manifest]) -> None:
    built = build(SMALL, "--target", "12.0", "--target", "SM86", "--max-batch", "6")
    assert built.name == f"{SMALL}-rtx-fp16-sm86-sm120"
    assert built.tensorrt is not None
    assert built.tensorrt.compute_capabilities == ("sm86", "sm120")
    assert [one.largest for one in built.tensorrt.profiles] == [1, 2, 4, 6]


def test_ampere_and_later_is_every_such_target_of_rtx(build: Callable[..., Manifest]) -> None:
    built = build(SMALL, "--compat", "ampere+")
    assert built.tensorrt is not None
    assert built.tensorrt.compute_capabilities == ("sm80", "sm86", "sm89", "sm120", "sm121")


def test_same_engine_again_is_recognised_and_a_different_one_is_a_new_version(
    root: Path, build: Callable[..., Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    build(SMALL, "--target", "sm80", "--name", "again")
    before = everything(root)
    build(SMALL, "--target", "sm80", "--name", "again")
    assert "already built as version 1" in capsys.readouterr().out
    assert everything(root) == before
    build(SMALL, "--target", "sm80", "--name", "again", "--max-batch", "4")
    assert manifest.read(root / "again" / "2").fingerprint != manifest.read(root / "again" / "1").fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet51", "--target", "sm89"], "there is no network resnet51"),
        ([SMALL, "--target", "sm90"], "not for sm90"),
        ([SMALL, "--target", "sm75", "--precision", "fp32"], "Turing"),
        ([SMALL, "--target", "sm89", "--compat", "version"], "leave out --compat version"),
        ([SMALL, "--compat", "ampere+", "--compat", "same-compute-capability"], "give one of them"),
        ([DEEP, "--target", "sm89", "--precision", "int8"], f"export/quantize.py {DEEP} --target gpu"),
    ],
)
def test_error_is_one_line_and_1(
    root: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(root)
    assert to_trt.main([*arguments, "--repository", str(root)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert everything(root) == before


@pytest.mark.parametrize("arguments", [["--target", "ada"], ["--compat", "all"], ["--precision", "fp8"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        to_trt.main([SMALL, *arguments])
    assert ended.value.code == 2


def test_onnx_file_that_is_not_the_manifests_builds_no_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, SMALL, b"a model")
    (tmp_path / SMALL / "1" / "model.onnx").write_bytes(b"another")
    assert to_trt.main([SMALL, "--target", "sm89", "--precision", "fp32", "--repository", str(tmp_path)]) == 1
    assert "SHA-256" in capsys.readouterr().err


def test_onnx_file_that_tensorrt_cannot_read_is_an_error_that_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, SMALL, b"a model")
    assert to_trt.main([SMALL, "--target", "sm89", "--precision", "fp32", "--repository", str(tmp_path)]) == 1
    assert "cannot read the ONNX file" in capsys.readouterr().err


def test_missing_onnx_file_is_exported_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["efficientnet_lite0", "--target", "sm89", "--precision", "fp32", "--repository", str(tmp_path)]
    assert to_trt.main(arguments) == 0, capsys.readouterr().err
    source = manifest.read(tmp_path / "efficientnet_lite0" / "1")
    built = manifest.read(tmp_path / "efficientnet_lite0-rtx-fp32-sm89" / "1")
    assert built.parity == source.parity
    assert built.parity is not None


def test_plan_that_is_not_the_manifests_is_refused(root: Path, build: Callable[..., Manifest]) -> None:
    built = build(SMALL, "--target", "sm89", "--name", "touched")
    folder = root / "touched" / "1"
    content = bytearray((folder / built.file.name).read_bytes())
    content[-1] ^= 1
    (folder / built.file.name).write_bytes(content)
    with pytest.raises(ManifestError, match="SHA-256"):
        manifest.read_model_file(folder, built)


def test_half_precision_keeps_inputs_outputs_and_answers(root: Path) -> None:
    source = manifest.read(root / SMALL / "1")
    single = manifest.read_model_file(root / SMALL / "1", source)
    proven = source.model_copy(update={"parity": _parity()})
    halved, measured = convert.to_proven_half(proven, single, PHOTOS)
    before, after = (onnx.load_from_string(model).graph for model in (single, halved))
    assert (list(after.input), list(after.output)) == (list(before.input), list(before.output))
    assert len(halved) < 0.55 * len(single)
    assert measured is not None
    assert _parity().max_logit_error < measured.max_logit_error < 2e-3  # five roundings of FP16 at most


def _parity() -> manifest.Parity:
    return manifest.Parity(
        batch_sizes=(1,), images=1, real_images=1, max_logit_error=1e-6, max_logit_error_allowed=1e-4, top1_agreement=1
    )


def test_network_that_overflows_half_precision_builds_no_engine(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.load(root / SMALL / "1" / "model.onnx")
    for tensor in proto.graph.initializer:  # much larger activations, logits as before
        factor = {"network.conv1.weight": 1e5, "network.fc.weight": 1e-5}.get(tensor.name)
        if factor:
            tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * np.float32(factor)), tensor.name))
    publish(tmp_path, SMALL, proto.SerializeToString())
    assert to_trt.main([SMALL, "--target", "sm89", "--repository", str(tmp_path)]) == 1
    assert "in half precision the logits differ" in capsys.readouterr().err
    assert not list(tmp_path.glob("*-rtx-*"))


def test_this_machines_gpu_is_the_target_where_none_is_named() -> None:
    wanted = engine.decide([], [], refit=True, max_batch=8, gpu=RTX4090)
    assert (wanted.targets, wanted.record("0" * 64).gpu) == (("sm89",), RTX4090.name)


@pytest.mark.parametrize(
    ("gpu", "refit", "message"),
    [
        (None, False, "give a --target, one of sm75, sm80, sm86, sm89, sm120, sm121"),
        (H200, False, "install TensorRT"),
        (None, True, "--refit needs an NVIDIA driver"),
    ],
)
def test_what_cannot_be_built_here_is_said(gpu: Gpu | None, refit: bool, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        engine.decide([], [], refit=refit, max_batch=8, gpu=gpu)


def test_neither_flavour_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MODULES", dict.fromkeys(TITLES, "no_such_module"))
    with pytest.raises(EngineError, match="pip install"):
        engine.decide(["sm89"], [], refit=False, max_batch=8, gpu=None)


@pytest.mark.parametrize(("max_batch", "largest"), [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8])])
def test_profiles_meet_without_a_gap(max_batch: int, largest: list[int]) -> None:
    profiles = engine.profiles(max_batch)
    assert [one.largest for one in profiles] == largest
    assert [one.smallest for one in profiles] == [1, *(one.largest + 1 for one in profiles[:-1])]
