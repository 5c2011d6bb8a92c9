import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from export import activations, backends, quantize, repository, verify
from export.backends import RUNTIMES
from export.precision import METHODS, Fold, Wanted, this_machine
from export.quantization import Calibrated, closest
from export.report import Report
from export.samples import PHOTOS, image_paths
from models import manifest
from models.intervals import clopper_pearson
from models.manifest import LOGITS_NAME, QuantizationTarget, Rounding
from models.weights import sha256_of
from server import cpus
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


@pytest.fixture(scope="module")
def few(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image of each class."""
    folder = tmp_path_factory.mktemp("few")
    for path in photos.glob("*/0000.jpg"):
        (folder / f"{path.parent.name}.jpg").symlink_to(path.resolve())
    return folder


@pytest.fixture
def root(cifar_repository: Path, tmp_path: Path) -> Path:
    """A repository that contains only a trained cifar_resnet20."""
    shutil.copytree(cifar_repository / NAME, tmp_path / NAME)
    return tmp_path


LAX = ("--method", "minmax", "--min-agreement", "95")


@pytest.fixture(scope="module")
def quantised(cifar_repository: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an INT8 file that a lenient gate accepted."""
    root = tmp_path_factory.mktemp("quantised")
    shutil.copytree(cifar_repository / NAME, root / NAME)
    before = everything(root / NAME)
    assert run(root, "--calibration", photos, *LAX) == 0
    assert everything(root / NAME) == before
    return root


def run(root: Path, *arguments: str | Path) -> int:
    return quantize.main([NAME, *map(str, arguments), "--repository", str(root), "--seconds", "0"])


def test_int8_model_enters_under_its_own_name_with_all_that_was_measured(quantised: Path) -> None:
    known = manifest.read(quantised / f"{NAME}-int8" / "1")
    source = manifest.read(quantised / NAME / "1")
    assert (known.backend, known.bound_to, known.precision, known.parity) == ("onnx", None, "int8", None)
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
    assert made.images == 200  # each half, evaluated with the file calibrated on the other
    assert 0.95 <= made.top1_agreement < 1
    assert made.agreement_interval == clopper_pearson(round(made.top1_agreement * 200), 200)
    assert (made.min_agreement, made.verdict) == (0.95, "accepted")
    assert made.sure_disagreements is not None
    assert made.accuracy is not None
    assert made.source_accuracy is not None
    assert abs(made.accuracy.top1 - made.source_accuracy.top1) <= 5


def test_int8_model_is_verified_on_both_runtimes_beside_fp32(
    quantised: Path, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"{NAME}-int8", "--repository", str(quantised), "--images", str(few), "--seconds", "0", "--json"]
    assert verify.main([*arguments, "--backend", "onnx,openvino"]) == 0
    lines = Report.model_validate_json(capsys.readouterr().out).lines
    assert [(line.model, line.runtime) for line in lines] == [
        (NAME, "onnx"),
        (f"{NAME}-int8", "onnx"),
        (NAME, "openvino"),
        (f"{NAME}-int8", "openvino"),
    ]
    assert [line.top1_agreement >= 0.9 for line in lines] == [True] * 4
    assert lines[0].top1_agreement == lines[2].top1_agreement == 1


def test_same_thing_is_made_once(quantised: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(quantised)
    assert run(quantised, "--calibration", photos, *LAX) == 0
    printed = capsys.readouterr().out
    assert "is there already as version 1" in printed
    assert "calibrate" not in printed
    assert everything(quantised) == before


def test_what_a_lax_gate_let_in_is_not_there_for_a_strict_one(
    quantised: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(quantised)
    assert run(quantised, "--calibration", photos, *LAX[:2], "--min-agreement", "100") == 1
    captured = capsys.readouterr()
    assert "compared with the first file" in captured.out
    assert "-int8 2 " in captured.out  # not that of version 1
    assert captured.err.startswith("error: top-1 agreement with FP32 is 9")
    assert "100 % is wanted: nothing was added" in captured.err
    assert captured.err.count("\n") == 1
    assert everything(quantised) == before


def test_too_few_images_decide_nothing_unless_asked_to(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(root)
    for arguments, code in (((), 1), (("--accept-undecided",), 0), ((), 1)):
        assert run(root, "--precision", "fp16", *arguments) == code
        captured = capsys.readouterr()
        if code:
            assert captured.err.count("\n") == 1
            assert "98 % must be proven, which is undecided: about 180 more images" in captured.err
            assert "nothing was added" in captured.err
            assert (everything(root) == before) == (arguments == () and not (root / f"{NAME}-fp16").exists())
        else:
            assert "is undecided; it was added because of --accept-undecided" in captured.out
            made = manifest.read(root / f"{NAME}-fp16" / "1").conversion
            assert made is not None
            assert made.verdict == "undecided"
    assert not (root / f"{NAME}-fp16" / "2").exists()


def test_file_for_openvino_is_bound_to_it(root: Path, few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--calibration", few, "--backend", "openvino", "--method", "minmax", "--accept-undecided")
    assert run(root, *arguments, "--min-agreement", "80") == 0, capsys.readouterr().err
    known = manifest.read(root / f"{NAME}-int8" / "1")
    assert known.conversion is not None
    assert known.conversion.calibration is not None
    assert (known.backend, known.bound_to, known.conversion.calibration.rounding) == ("openvino", "openvino", "inputs")
    asked = [f"{NAME}-int8", "--repository", str(root), "--images", str(few), "--seconds", "0"]
    assert verify.main([*asked, "--backend", "openvino"]) == 0
    assert verify.main([*asked, "--backend", "onnx"]) == 1
    assert "it is made for openvino" in capsys.readouterr().err


def test_bf16_is_the_fp32_file_and_a_gated_precision(
    root: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--precision", "bf16", "--images", photos)
    if cpus.flags() & cpus.BF16:
        assert run(root, *arguments, "--min-agreement", "95") == 0, capsys.readouterr().err
        known, source = (manifest.read(root / name / "1") for name in (f"{NAME}-bf16", NAME))
        assert (known.precision, known.backend, known.bound_to) == ("bf16", "openvino", "openvino")
        assert known.file == source.file
        assert known.conversion is not None
        assert (known.conversion.calibration, known.conversion.images) == (None, 200)
        assert known.conversion.max_logit_error > 1e-2
    for more, flags, message in (
        (("--backend", "onnx"), cpus.BF16, "leave out --backend onnx"),
        ((), frozenset[str](), "this CPU does not compute in bfloat16"),
    ):
        monkeypatch.setattr("server.cpus.flags", lambda found=flags: found)
        assert run(root, *arguments, *more) == 1
        assert message in capsys.readouterr().err


def test_gate_its_images_and_the_correction_belong_to_the_fingerprint(
    cifar_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = repository.get(cifar_repository, NAME)
    cat, *others = image_paths(PHOTOS)
    int8 = Wanted("int8", "onnx", "x86", METHODS, [Fold([cat], others)], 99)
    before = int8.fingerprint(source)
    half = replace(int8, precision="fp16", folds=[Fold([], others)])
    for wanted in (int8, half):
        fewer = [fold._replace(evaluate=others[1:]) for fold in wanted.folds]
        same, *different = (
            other.fingerprint(source)
            for other in (
                replace(wanted),
                replace(wanted, min_agreement=98),
                replace(wanted, folds=fewer),
                replace(wanted, accept_undecided=True),
            )
        )
        assert same == wanted.fingerprint(source)
        assert len({same, *different}) == 4
    monkeypatch.setattr(
        "export.precision.sha256_of", lambda path: "1" if path.stem == "bias_correction" else sha256_of(path)
    )
    assert int8.fingerprint(source) != before


def test_source_that_sees_other_pixels_is_another_though_its_file_is_the_same(cifar_repository: Path) -> None:
    source = repository.get(cifar_repository, NAME)
    other = source.model_copy(update={"fingerprint": "0" * 64})
    half = Wanted("fp16", "onnx", "x86", METHODS, [Fold([], image_paths(PHOTOS))], 99)
    assert half.fingerprint(source) != half.fingerprint(other)


def test_recipe_is_chosen_on_the_images_of_the_calibration(
    root: Path, few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, "--calibration", few, "--min-agreement", "50", "--accept-undecided") == 0, capsys.readouterr().err
    made = manifest.read(root / f"{NAME}-int8" / "1").conversion
    assert made is not None
    assert made.calibration is not None
    assert made.calibration.method in METHODS
    assert (
        f"ranges by {made.calibration.method}, activations rounded: {made.calibration.rounding}"
        in capsys.readouterr().out
    )


def test_one_image_does_not_choose_the_recipe() -> None:
    usual = np.random.default_rng(0).uniform(1, 2, 50)
    outlier = usual.copy()
    outlier[7] += 1000
    assert closest({"usual": outlier, "other": usual}) == "usual"
    assert closest({"usual": usual, "other": usual - 0.1, "best": usual - 0.2, "worse": usual - 0.05}) == "best"
    failing = usual - 0.2
    failing[7] += 1000
    assert closest({"usual": usual, "other": failing}) == "usual"
    assert closest({"usual": usual[:1], "other": usual[:1]}) == "usual"


def test_ranges_are_those_of_their_methods() -> None:
    found = activations.Activation()
    random = np.random.default_rng(0)
    for highest in (10.0, 20.0):
        values = np.linspace(0, 1, 80_000, dtype=np.float32).reshape(8, 10, 1000)
        values[-1, -1, -1] = highest
        found.add(values, 1 << 16, random)
    assert list(found.range("minmax")) == [0, 20]
    assert list(found.range("moving-average")) == [0, 15]
    for method in ("percentile", "entropy"):
        low, high = found.range(method)
        assert low == pytest.approx(0, abs=0.01)
        assert high < 15
    assert found.sums.shape == (10,)


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
    assert types == [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.INT32, *[TensorProto.FLOAT] * 3]
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


@pytest.fixture(scope="module")
def calibrated(exported: Exported) -> Calibrated:
    return Calibrated(exported.model, PIXELS)


def graph_of(network: Calibrated, target: QuantizationTarget, rounding: Rounding = "all") -> onnx.GraphProto:
    return onnx.load_from_string(network.quantize(target, "minmax", rounding)).graph


def weights_of(graph: onnx.GraphProto) -> list[NDArray[np.generic]]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [array for array in constants.values() if array.ndim == 4]


@pytest.mark.parametrize("target", ["x86-vnni", "gpu"])
def test_normalisation_and_ranking_stay_in_floating_point(calibrated: Calibrated, target: QuantizationTarget) -> None:
    graph = graph_of(calibrated, target)
    makers = {name: node.op_type for node in graph.node for name in node.output}
    outside = [node for node in graph.node if node.op_type in ("Cast", "Mul", "Softmax", "TopK", "GatherElements")]
    assert len(outside) >= 5
    for node in outside:
        assert "DequantizeLinear" not in {makers.get(name) for name in node.input}, node.name
    assert makers[LOGITS_NAME] == "Gemm"
    assert {array.dtype for array in weights_of(graph)} == {np.dtype(np.int8)}


def test_x86_without_vnni_gets_weights_of_seven_bits(calibrated: Calibrated) -> None:
    seven, eight = (weights_of(graph_of(calibrated, target)) for target in ("x86", "x86-vnni"))
    assert max(np.abs(array.astype(int)).max() for array in seven) <= 64
    assert max(np.abs(array.astype(int)).max() for array in eight) == 127


def test_gpu_gets_symmetric_activations_and_a_bias_in_floating_point(calibrated: Calibrated) -> None:
    graph = graph_of(calibrated, "gpu")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = constants[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()


def test_quantised_graph_runs_at_every_batch_size_on_both_runtimes(exported: Exported, calibrated: Calibrated) -> None:
    content = calibrated.quantize("x86-vnni", "minmax", "all-but-first")
    both = [backends.load(exported.draft, content, runtime) for runtime in RUNTIMES]
    for size in (1, 3, 8):
        one, other = (backend.run(list(PIXELS[:size])).logits for backend in both)
        assert one.shape == other.shape == (size, 10)


def test_only_what_enters_a_layer_is_rounded(exported: Exported, calibrated: Calibrated) -> None:
    graph = graph_of(calibrated, "x86-vnni", "inputs")
    makers = {name: node for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert [makers[node.input[0]].op_type == "DequantizeLinear" for node in layers] == [False] + [True] * (
        len(layers) - 1
    )
    others = [node for node in graph.node if node.op_type in ("Add", "Relu", "ReduceMean", "GlobalAveragePool")]
    assert len(others) > 9
    for node in others:
        assert "DequantizeLinear" not in {makers[name].op_type for name in node.input if name in makers}, node.name
    draft = exported.draft.model_copy(update={"backend": "openvino"})
    backend = backends.load(draft, calibrated.quantize("x86-vnni", "minmax", "inputs"))
    plain = backends.load(exported.draft, exported.model)
    error = np.abs(backend.run(list(PIXELS)).logits - plain.run(list(PIXELS)).logits).max()
    assert 0 < error < 0.5


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
