import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export import backends, quantize, repository, verify
from export.backends import RUNTIMES
from export.precision import METHODS, Images, Wanted, this_machine
from export.quantization import quantize as to_int8
from export.report import Report
from export.samples import PHOTOS, image_paths
from models import manifest
from models.manifest import LOGITS_NAME, QuantizationTarget
from models.weights import sha256_of
from tests.export.conftest import Exported
from tests.export.drafts import everything

NAME = "cifar_resnet20"
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of each of CIFAR-10's classes: 100 to calibrate and 100 to evaluate on."""
    folder = tmp_path_factory.mktemp("cifar10")
    for path in sorted((shared / "data" / "cifar10-test").glob("*/00[01]?.jpg")):
        (folder / path.parent.name).mkdir(exist_ok=True)
        (folder / path.parent.name / path.name).symlink_to(path)
    return folder


@pytest.fixture
def root(cifar_repository: Path, tmp_path: Path) -> Path:
    """A repository with nothing but a trained cifar_resnet20."""
    shutil.copytree(cifar_repository / NAME, tmp_path / NAME)
    return tmp_path


def run(root: Path, *arguments: str | Path) -> int:
    return quantize.main([NAME, *map(str, arguments), "--repository", str(root), "--seconds", "0"])


def test_int8_model_enters_under_its_own_name_with_all_that_was_measured(
    root: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(root / NAME)
    assert run(root, "--calibration", photos, "--method", "minmax", "--min-agreement", "95") == 0, (
        capsys.readouterr().err
    )
    assert everything(root / NAME) == before
    known = manifest.read(root / f"{NAME}-int8" / "1")
    source = manifest.read(root / NAME / "1")
    assert (known.backend, known.precision, known.parity) == ("onnx", "int8", None)
    assert known.file.size_bytes < source.file.size_bytes / 2.5
    assert (known.labels, known.preprocessing, known.weights) == (source.labels, source.preprocessing, source.weights)
    made = known.conversion
    assert made is not None
    assert (made.source, made.source_version, made.source_sha256) == (NAME, 1, source.file.sha256)
    assert made.calibration is not None
    assert (made.calibration.images, made.calibration.method, made.calibration.target) == (
        100,
        "minmax",
        this_machine(),
    )
    assert made.images == 100
    assert 0.95 <= made.top1_agreement < 1
    assert made.accuracy is not None
    assert made.source_accuracy is not None
    assert abs(made.accuracy.top1 - made.source_accuracy.top1) <= 5
    assert "compared with the first line" in capsys.readouterr().out


def test_int8_model_is_verified_on_both_runtimes_beside_fp32(
    root: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, "--calibration", photos, "--method", "minmax", "--min-agreement", "90", "--name", "small") == 0
    capsys.readouterr()
    arguments = ["small", "--repository", str(root), "--images", str(photos), "--seconds", "0", "--json"]
    assert verify.main([*arguments, "--backend", "onnx,openvino"]) == 0
    lines = Report.model_validate_json(capsys.readouterr().out).lines
    assert [(line.model, line.runtime) for line in lines] == [
        (NAME, "onnx"),
        ("small", "onnx"),
        (NAME, "openvino"),
        ("small", "openvino"),
    ]
    assert [line.top1_agreement >= 0.95 for line in lines] == [True] * 4
    assert lines[0].top1_agreement == lines[2].top1_agreement == 1


def test_same_thing_is_made_once(root: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--calibration", photos, "--method", "minmax", "--min-agreement", "90")
    assert run(root, *arguments) == 0
    before = everything(root)
    assert run(root, *arguments) == 0
    assert "is there already as version 1" in capsys.readouterr().out
    assert everything(root) == before
    assert run(root, *arguments, "--target", "x86") == 0
    assert (
        manifest.read(root / f"{NAME}-int8" / "2").fingerprint != manifest.read(root / f"{NAME}-int8" / "1").fingerprint
    )


def test_model_that_does_not_agree_stays_out_of_the_repository(
    root: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(root)
    assert run(root, "--calibration", photos, "--method", "minmax", "--min-agreement", "100") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: top-1 agreement with FP32 is 9")
    assert error.count("\n") == 1
    assert everything(root) == before


def test_what_a_lax_gate_let_in_is_not_there_for_a_strict_one(
    root: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--calibration", photos, "--method", "minmax")
    assert run(root, *arguments, "--min-agreement", "90") == 0
    before = everything(root)
    assert run(root, *arguments, "--min-agreement", "100") == 1
    assert "100 % is wanted: nothing was added" in capsys.readouterr().err
    assert everything(root) == before


def test_gate_its_images_and_the_correction_belong_to_the_fingerprint(
    cifar_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = repository.get(cifar_repository, NAME)
    cat, *others = image_paths(PHOTOS)
    int8 = Wanted("int8", "onnx", "x86", METHODS, Images([cat], others), 99)
    before = int8.fingerprint(source)
    half = replace(int8, precision="fp16", images=Images([], others))
    for wanted in (int8, half):
        fewer = wanted.images._replace(evaluate=others[1:])
        same, *different = (
            other.fingerprint(source)
            for other in (replace(wanted), replace(wanted, min_agreement=98), replace(wanted, images=fewer))
        )
        assert same == wanted.fingerprint(source)
        assert len({same, *different}) == 3
    monkeypatch.setattr(
        "export.precision.sha256_of", lambda path: "1" if path.stem == "bias_correction" else sha256_of(path)
    )
    assert int8.fingerprint(source) != before


def test_source_that_sees_other_pixels_is_another_though_its_file_is_the_same(cifar_repository: Path) -> None:
    source = repository.get(cifar_repository, NAME)
    other = source.model_copy(update={"fingerprint": "0" * 64})
    half = Wanted("fp16", "onnx", "x86", METHODS, Images([], image_paths(PHOTOS)), 99)
    assert half.fingerprint(source) != half.fingerprint(other)


def test_best_method_is_chosen_on_the_images_of_the_calibration(
    root: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, "--calibration", photos, "--min-agreement", "90") == 0, capsys.readouterr().err
    made = manifest.read(root / f"{NAME}-int8" / "1").conversion
    assert made is not None
    assert made.calibration is not None
    assert made.calibration.method in METHODS
    assert f"closest to FP32 on the images of the calibration: {made.calibration.method}" in capsys.readouterr().out


def test_fp16_model_keeps_pixels_and_probabilities_as_they_were(
    root: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, "--precision", "fp16", "--images", photos) == 0, capsys.readouterr().err
    known = manifest.read(root / f"{NAME}-fp16" / "1")
    assert (known.backend, known.precision) == ("onnx", "fp16")
    assert known.conversion is not None
    assert known.conversion.calibration is None
    assert known.conversion.top1_agreement >= 0.99
    graph = onnx.load(root / f"{NAME}-fp16" / "1" / "model.onnx").graph
    types = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    assert types == [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.INT32, TensorProto.FLOAT]
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--calibration", "models"), "models has no images"),
        ((), "--calibration FOLDER"),
    ],
)
def test_error_is_one_line_and_1(
    root: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, *arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def quantized(exported: Exported, target: QuantizationTarget) -> onnx.GraphProto:
    return onnx.load_from_string(to_int8(exported.model, PIXELS, target, "minmax")).graph


def weights_of(graph: onnx.GraphProto) -> list[NDArray[np.generic]]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [array for array in constants.values() if array.ndim == 4]


@pytest.mark.parametrize("target", ["x86-vnni", "gpu"])
def test_normalisation_and_ranking_stay_in_floating_point(exported: Exported, target: QuantizationTarget) -> None:
    graph = quantized(exported, target)
    makers = {name: node.op_type for node in graph.node for name in node.output}
    outside = [node for node in graph.node if node.op_type in ("Cast", "Mul", "Softmax", "TopK", "GatherElements")]
    assert len(outside) >= 5
    for node in outside:
        assert "DequantizeLinear" not in {makers.get(name) for name in node.input}, node.name
    assert makers[LOGITS_NAME] == "Gemm"
    assert {array.dtype for array in weights_of(graph)} == {np.dtype(np.int8)}


def test_x86_without_vnni_gets_weights_of_seven_bits(exported: Exported) -> None:
    seven, eight = (weights_of(quantized(exported, target)) for target in ("x86", "x86-vnni"))
    assert max(np.abs(array.astype(int)).max() for array in seven) <= 64
    assert max(np.abs(array.astype(int)).max() for array in eight) == 127


def test_gpu_gets_symmetric_activations_and_a_bias_in_floating_point(exported: Exported) -> None:
    graph = quantized(exported, "gpu")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = constants[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()


def test_quantised_graph_runs_at_every_batch_size_on_both_runtimes(exported: Exported) -> None:
    content = to_int8(exported.model, PIXELS, "x86-vnni", "minmax")
    both = [backends.load(exported.draft, content, runtime) for runtime in RUNTIMES]
    for size in (1, 3, 8):
        one, other = (backend.run(list(PIXELS[:size])).logits for backend in both)
        assert one.shape == other.shape == (size, 10)


@pytest.mark.parametrize(
    ("flags", "expected"), [("sse avx512f avx512_vnni", "x86-vnni"), ("avx2 avx_vnni", "x86-vnni"), ("avx2", "x86")]
)
def test_target_is_read_from_the_cpus_flags(tmp_path: Path, flags: str, expected: QuantizationTarget) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags} sse2\n")
    assert this_machine(tmp_path / "cpuinfo") == expected


def test_model_that_is_no_network_of_ours_is_an_error(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize.main(["resnet51", "--calibration", str(photos), "--repository", str(tmp_path)]) == 1
    assert "there is no network resnet51" in capsys.readouterr().err
    assert repository.find_fp32(tmp_path, "resnet51") is None
